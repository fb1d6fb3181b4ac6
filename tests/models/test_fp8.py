"""Products of frozen experts in FP8: those of the rounded factors, and nothing else is changed."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.costs.memory import rank_memory
from megatron_bar.models.all_experts import _WeightedExperts
from megatron_bar.models.fp8 import (
    copied_bytes,
    input_gradient,
    multiply_in_fp8,
    product,
)
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.frozen_fp8 import check_fp8, multiply_frozen_in_fp8
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.overrides import transformer_overrides
from megatron_bar.training.step import forward_backward
from tests.models.shapes import SMALL
from tests.models_hf import packed_batch

CONFIG = SMALL.with_experts(3)
TRAINABLE = ["expert.2", "router.2", "attention"]


def back(x_TK: torch.Tensor) -> torch.Tensor:
    """`x_TK` as FP8 has it, in fp32, each row by a scale of its own."""
    scales_T1 = x_TK.float().abs().amax(-1, keepdim=True) / 448
    values_TK = x_TK.float() / scales_T1.clamp(min=1e-37)
    return values_TK.to(torch.float8_e4m3fn).float() * scales_T1


class Twin(torch.autograd.Function):
    """`x W^T` and the gradient of x, plainly, of factors that were rounded to FP8 and back."""

    @staticmethod
    def forward(ctx, x_TI, weight_OI):
        ctx.save_for_backward(weight_OI)
        return (back(x_TI) @ back(weight_OI).t()).to(x_TI.dtype)

    @staticmethod
    def backward(ctx, grad_TO):
        (weight_OI,) = ctx.saved_tensors
        return (back(grad_TO) @ back(weight_OI.t()).t()).to(grad_TO.dtype), None


def twin_experts(x_TH, probs_Te, *weights):
    y_TH = torch.zeros_like(x_TH)
    for p_T, w1_GH, w2_HF in zip(probs_Te.unbind(1), weights[::2], weights[1::2]):
        gate_TF, up_TF = Twin.apply(x_TH, w1_GH).chunk(2, dim=-1)
        h_TF = torch.nn.functional.silu(gate_TF) * up_TF
        y_TH = y_TH + (p_T[:, None] * Twin.apply(h_TF, w2_HF)).to(y_TH.dtype)
    return y_TH


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).bfloat16()


def frozen(*shape: int, seed: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(random(*shape, scale=0.1, seed=seed), requires_grad=False)


def test_products_are_those_of_the_rounded_factors():
    """Of tokens, outputs and inputs of very unlike sizes."""
    sizes_T1 = 10.0 ** torch.linspace(-9, 3, 20)[:, None]
    x_TI, grad_TO = random(20, 64) * sizes_T1, random(20, 48, seed=1) * sizes_T1
    x_TI, grad_TO = x_TI.bfloat16(), grad_TO.bfloat16()
    x_TI[3] = grad_TO[3] = 0
    weight_OI = frozen(48, 64, seed=2)
    weight_OI.mul_(10.0 ** torch.linspace(-3, 1, 48)[:, None])
    before = weight_OI.clone()
    multiply_in_fp8(weight_OI)
    forward_TO = product(x_TI, weight_OI)
    backward_TI = input_gradient(grad_TO, weight_OI)
    sum_TI = x_TI.clone()
    assert input_gradient(grad_TO, weight_OI, sum_TI) is sum_TI
    # bf16 rounds results by up to 2^-9; sums are in another order.
    for found, expected in (
        (forward_TO, back(x_TI) @ back(before).t()),
        (backward_TI, back(grad_TO) @ back(before.t()).t()),
        (sum_TI, x_TI.float() + back(grad_TO) @ back(before.t()).t()),
    ):
        for row, expected_row in zip(found.float(), expected):
            largest = float(expected_row.abs().max())
            torch.testing.assert_close(row, expected_row, rtol=2**-7, atol=1e-3 * largest)
    assert torch.equal(weight_OI, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_rounded_away(bad):
    x_TI, weight_OI = random(5, 64), frozen(48, 64, seed=2)
    x_TI[2, 7] = bad
    multiply_in_fp8(weight_OI)
    fine_T = product(x_TI, weight_OI).isfinite().all(-1)
    assert fine_T.tolist() == [True, True, False, True, True]


def test_experts_and_their_gradients_against_the_plain_twin():
    shapes = [(96, 32), (32, 48)] * 3
    weights = [frozen(*shape, seed=number) for number, shape in enumerate(shapes)]

    def of(function):
        x_TH, probs_TE = random(40, 32, seed=9), random(40, 3, seed=10).float().softmax(-1)
        inputs = [x_TH.requires_grad_(), probs_TE.requires_grad_()]
        y_TH = function(*inputs, *weights)
        (y_TH.float() * torch.linspace(-1, 2, y_TH.numel()).view_as(y_TH)).sum().backward()
        return y_TH.detach(), *(tensor.grad for tensor in inputs)

    in_bf16 = of(_WeightedExperts.apply)
    for weight in weights:
        multiply_in_fp8(weight)
    ours, twins = of(_WeightedExperts.apply), of(twin_experts)
    for found, expected, plain in zip(ours, twins, in_bf16, strict=True):
        # Where bf16 rounds otherwise in between, FP8 may, too; it is far from bf16 all the same.
        assert distance(found, expected) < 0.01 < 0.02 < distance(expected, plain) < 0.1


def _step(fp8: bool, recompute: str = "none") -> tuple[float, float, dict[str, torch.Tensor]]:
    """The loss with and without gradients, and gradients of what trains."""
    training = Training(
        trainable=TRAINABLE, dtype="bfloat16", recompute=recompute, fp8_frozen_experts=fp8
    )
    model = build_model(CONFIG, Layout(), torch.bfloat16, overrides=transformer_overrides(training))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    opened = matching(list(group_sizes(CONFIG)), TRAINABLE, "test")
    freeze(model, CONFIG, opened)
    wrapped = wrap(model, training)
    wrapped.train()
    batch = packed_batch(CONFIG.vocab_size, 4, 32)
    loss = forward_backward(wrapped, [batch]).loss
    with torch.no_grad():
        without = forward_backward(wrapped, [batch], train=False).loss
    assert all(map(torch.equal, before, model.parameters()))
    # Memory that `plan` counts.
    held = sum(weight.nbytes + copied_bytes(weight) for weight in model.parameters())
    assert rank_memory(CONFIG, Layout(), training, opened, 0, 0).weights == held
    gradients = {n: p.main_grad for n, p in model.named_parameters() if p.requires_grad}
    return loss, without, gradients


@pytest.mark.parametrize("recompute", ["none", "moe", "full"])
def test_a_step_is_near_that_of_bf16_and_the_same_with_recomputation(recompute):
    with process_groups(Layout()):
        loss, without, gradients = _step(True, recompute)
        plain_loss, _, plain_gradients = _step(False)
        assert loss == pytest.approx(without, rel=1e-6)
        assert (loss, gradients.keys()) == (_step(True)[0], plain_gradients.keys())
    assert loss != plain_loss and loss == pytest.approx(plain_loss, rel=0.01)
    for name, gradient in gradients.items():
        assert 1e-3 < distance(gradient, plain_gradients[name]) < 0.15, name


@pytest.mark.parametrize(
    "training, model, trainable, message",
    [
        (Training(dtype="float32"), CONFIG, TRAINABLE, "wants dtype: bfloat16"),
        (Training(), CONFIG.without_experts(), ["ffn"], "only on experts that get every token"),
        (Training(), SMALL.with_experts(3, 2), TRAINABLE, "only on experts that get every token"),
        (Training(), CONFIG, ["expert.0", "expert.1", "expert.2"], "as all experts train"),
        (Rlvr(), CONFIG, TRAINABLE, "isn't offered in RLVR"),
    ],
)
def test_it_is_refused_where_it_would_have_no_effect_or_be_wrong(
    training, model, trainable, message
):
    check_fp8(training, model, Layout(), trainable, "math/sft")  # not asked for
    training.fp8_frozen_experts = True
    with pytest.raises(BarError, match=f"^math/sft: fp8_frozen_experts .*{message}"):
        check_fp8(training, model, Layout(), trainable, "math/sft")


def test_sides_of_products_that_a_gpu_does_not_take_are_refused():
    training = Training(fp8_frozen_experts=True)
    check_fp8(training, CONFIG, Layout(), TRAINABLE, "x")
    with pytest.raises(BarError, match="multiples of 16, and the FFN size on a rank is 24"):
        check_fp8(training, CONFIG, Layout(2, tensor=2), TRAINABLE, "x")


def test_a_start_in_float32_and_an_old_gpu_are_refused(monkeypatch):
    training = Training(fp8_frozen_experts=True)
    with process_groups(Layout()):
        with pytest.raises(BarError, match="computes in what its start is stored in, float32"):
            wrap(build_model(CONFIG, Layout()), training)
        model = build_model(CONFIG, Layout(), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    with pytest.raises(BarError, match=r"8\.9 or newer .*, and A100 has 8\.0; leave it out"):
        multiply_frozen_in_fp8(model)
