"""The weighted sum over all experts, against its plain formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from megatron.core.transformer.moe.moe_layer import MoELayer

from megatron_bar.models.all_experts import AllExpertsLayer, _running_sum, _WeightedExperts
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.live_bytes import LiveBytes
from tests.models.shapes import SMALL

TOKENS, HIDDEN, FFN, EXPERTS = 7, 5, 3, 3


def plain(x_TH, probs_TE, *weights):
    y_TH = torch.zeros_like(x_TH)
    for p_T, w1_GH, w2_HF in zip(probs_TE.unbind(1), weights[::2], weights[1::2]):
        gate_TF, up_TF = (x_TH @ w1_GH.T).chunk(2, dim=-1)
        y_TH = y_TH + p_T[:, None] * ((torch.nn.functional.silu(gate_TF) * up_TF) @ w2_HF.T)
    return y_TH


def arguments(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [
        random(*shape) for _ in range(EXPERTS) for shape in ((2 * FFN, HIDDEN), (HIDDEN, FFN))
    ]
    return [random(TOKENS, HIDDEN), random(TOKENS, EXPERTS).softmax(-1), *weights]


def test_value_and_all_gradients_against_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in arguments()]
    assert torch.allclose(_WeightedExperts.apply(*inputs), plain(*inputs), atol=1e-12)
    assert torch.autograd.gradcheck(_WeightedExperts.apply, inputs)


# Which of x, the probabilities and each expert's two weights have a gradient. (False, False, ...)
# is the first layer of a stage that trains nothing before it.
@pytest.mark.parametrize(
    "open_", [flags for flags in itertools.product([False, True], repeat=4) if any(flags)]
)
def test_gradients_are_the_plain_ones_whatever_is_frozen(open_):
    x, probs, first, last = open_
    needed = [x, probs, first, first, False, False, last, not first]
    ours, theirs = arguments(), arguments()
    for flag, a, b in zip(needed, ours, theirs):
        a.requires_grad_(flag)
        b.requires_grad_(flag)
    weighting = torch.linspace(-1, 2, TOKENS * HIDDEN, dtype=torch.float64).view(TOKENS, HIDDEN)
    for function, inputs in ((_WeightedExperts.apply, ours), (plain, theirs)):
        (function(*inputs) * weighting).sum().backward()
    for flag, a, b in zip(needed, ours, theirs):
        assert (a.grad is not None) == flag
        assert not flag or torch.allclose(a.grad, b.grad, atol=1e-12)


def test_bfloat16_keeps_its_type_and_is_as_near_as_the_plain_sum():
    truth = plain(*arguments())
    inputs = arguments(torch.bfloat16)
    inputs[1] = inputs[1].float()
    ours = _WeightedExperts.apply(*inputs)
    assert ours.dtype is torch.bfloat16
    error = (ours - truth).norm() / truth.norm()
    assert error < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_running_sum_is_the_same_to_the_bit(dtype):
    x_TH, probs_TE, *weights = arguments(dtype)
    kept = _WeightedExperts.apply(x_TH, probs_TE.float(), *weights)
    assert torch.equal(_running_sum(x_TH, probs_TE.float(), weights), kept)


def test_without_gradients_one_experts_output_is_there_at_a_time():
    peaks = {}
    with process_groups(Layout()):
        x_SBH = torch.randn(64, 2, 32)
        for experts in (2, 6):
            layer = build_model(SMALL.with_experts(experts), Layout()).decoder.layers[0].mlp
            with torch.no_grad(), LiveBytes() as live:
                layer(x_SBH)
            weights = sum(parameter.nbytes for parameter in layer.experts.parameters())
            peaks[experts] = live.peak - weights  # which it counts as it sees them
    assert peaks[6] - peaks[2] < x_SBH.nbytes / 4  # there are more probabilities


@pytest.mark.parametrize("per_token, expected", [(3, AllExpertsLayer), (2, MoELayer)])
def test_chosen_where_all_experts_are_active(per_token, expected):
    with process_groups(Layout()):
        model = build_model(SMALL.with_experts(3, per_token), Layout())
        assert {type(layer.mlp) for layer in model.decoder.layers} == {expected}


def test_it_keeps_less_for_the_backward_pass_than_the_stock_layer():
    """Of its own activations an expert keeps 2 F + H a token; the stock layer at least 4 F."""
    kept = {}
    with process_groups(Layout()):
        for per_token in (3, 2):
            model = build_model(SMALL.with_experts(3, per_token), Layout()).train()
            sizes = {}

            def keep(tensor, sizes=sizes):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            x_SBH = torch.randn(16, 2, 32, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                model.decoder.layers[0].mlp(x_SBH)
            weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
            kept[per_token] = sum(size for at, size in sizes.items() if at not in weights)
    own = 3 * (2 * 48 + 32) * 32 * 4  # experts * ([gate, up] * ffn + output) * tokens * bytes
    assert own <= kept[3] < own * 1.25
    assert kept[2] > kept[3]  # though it computes two experts and not three
