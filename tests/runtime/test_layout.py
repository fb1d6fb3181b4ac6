"""Layouts that can't be, or that Megatron-Core computes wrongly, are refused."""

import pytest

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

MODEL = ModelConfig(331, 48, 80, 4, 6, 2)


@pytest.mark.parametrize(
    "layout, message",
    [
        (Layout(3, tensor=2), "multiple of 2"),
        (Layout(4, tensor=2, expert=3), "multiple of 6"),
        (Layout(2, tensor=2, expert_tensor=1), "wrong expert gradients"),
        (Layout(0), "processes is 0"),
        (Layout(6, tensor=2, context=2), "context 2 x pipeline 1; make processes a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(layout, message):
    with pytest.raises(BarError, match=message):
        layout.check()


@pytest.mark.parametrize(
    "model, layout, message",
    [
        (MODEL, Layout(4, tensor=4), "tensor 4 doesn't divide the model's 6 attention heads"),
        (PRESETS["olmo2-32b"], Layout(16, tensor=16), "tensor 16 doesn't divide"),
        (MODEL, Layout(3, pipeline=3), "pipeline 3 doesn't divide the model's 4 layers"),
        (MODEL, Layout(2, expert=2), "a dense model has no experts"),
        (
            MODEL.with_experts(5),
            Layout(2, expert=2),
            "expert 2 doesn't divide the model's 5 experts",
        ),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(model, layout, message):
    layout.check()
    with pytest.raises(BarError, match=message):
        model.check(layout)


def test_a_layout_that_fits():
    layout = Layout(8, tensor=2, pipeline=2, expert=2, expert_tensor=1)
    layout.check()
    MODEL.with_experts(4).check(layout)
    assert layout.data == 2


@pytest.mark.parametrize(
    "layout, experts, fitted",
    [
        (Layout(8, tensor=2, expert=4, expert_tensor=1), None, Layout(8, tensor=2)),
        (Layout(8, tensor=2, expert=2), 5, Layout(8, tensor=2)),
        (
            Layout(8, tensor=2, expert=4, expert_tensor=1),
            6,
            Layout(8, tensor=2, expert=2, expert_tensor=1),
        ),
        (Layout(10, expert=5), 5, Layout(10, expert=5)),
    ],
)
def test_a_layout_is_fitted_to_the_experts_there_are(layout, experts, fitted):
    found = layout.fitted(experts)
    assert found == fitted
    found.check()
    (MODEL if experts is None else MODEL.with_experts(experts)).check(found)
