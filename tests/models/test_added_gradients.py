"""Gradients that the products of experts add to their buffers: those that are added afterwards."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models.added_gradients import add_in_product, can_add, weight_gradient
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.overrides import check_overrides, transformer_overrides
from megatron_bar.training.step import forward_backward
from tests.models.shapes import SMALL
from tests.models_hf import packed_batch

CONFIG = SMALL.with_experts(3)
FUSED = {"gradient_accumulation_fusion": True}


def _gradients(trainable: list[str], **settings) -> dict[str, torch.Tensor | None]:
    """After a step of three micro-batches; None of what has no buffer."""
    training = Training(trainable=trainable, **settings)
    model = build_model(CONFIG, Layout(), overrides=transformer_overrides(training))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    freeze(model, CONFIG, matching(list(group_sizes(CONFIG)), trainable, "test"))
    wrapped = wrap(model, training)
    wrapped.train()
    batches = [packed_batch(CONFIG.vocab_size, seed=seed) for seed in range(3)]
    for _ in range(2):  # the second step starts from nothing
        wrapped.zero_grad_buffer()
        forward_backward(wrapped, batches)
    assert all(parameter.grad is None for parameter in model.parameters())
    return {
        name: getattr(parameter, "main_grad", None) for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("overlap", [False, True], ids=["", "reduced beside"])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("trainable", [["expert.2", "router.2"], ["*"]], ids=["expert", "all"])
def test_the_same_gradients_and_none_of_what_is_frozen(trainable, recompute, overlap):
    settings = {"recompute": recompute}
    with process_groups(Layout()):
        apart = _gradients(trainable, **settings, megatron={"overlap_grad_reduce": overlap})
        fused = _gradients(trainable, **settings, megatron=FUSED | {"overlap_grad_reduce": overlap})
    for name, expected in apart.items():
        found = fused[name]
        assert (found is None) == (expected is None), name
        # Nothing but the order of the last sum differs.
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_the_product_itself_adds():
    """Nothing is written but the buffer: what autograd gets has no content."""
    weight = torch.nn.Parameter(torch.randn(6, 4))
    weight.main_grad = before = torch.ones(6, 4)
    add_in_product(weight)
    grad_TO, x_TI = torch.randn(5, 6), torch.randn(5, 4)
    assert weight_gradient(weight, grad_TO, x_TI).shape == weight.shape
    assert weight.main_grad is before and weight.grad_added_to_main_grad
    torch.testing.assert_close(before, 1 + grad_TO.t() @ x_TI)


def test_a_cpu_adds_in_fp32_alone_and_says_so(capsys):
    assert can_add(torch.empty(1))
    with process_groups(Layout()):
        wrap(build_model(CONFIG, Layout(), torch.bfloat16), Training(megatron=FUSED))
    assert "gradient_accumulation_fusion has no effect here" in capsys.readouterr().out


@pytest.mark.parametrize("model", [CONFIG.without_experts(), CONFIG.with_experts(3, 2)])
def test_it_is_refused_where_it_would_have_no_effect(model):
    with pytest.raises(BarError, match="only on experts that get every token"):
        check_overrides(Training(megatron=FUSED), model, "math/sft")
