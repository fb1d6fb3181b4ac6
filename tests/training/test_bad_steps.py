"""What counts as a bad step, in one process."""

from __future__ import annotations

import math

import pytest

from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.bad_steps import SETTLED, WINDOW, BadStepCheck
from megatron_bar.training.loop import TrainingResult
from megatron_bar.training.resume import Progress


@pytest.fixture
def make_check():
    def make(**settings) -> BadStepCheck:
        return BadStepCheck(Training(**settings), Progress(), "math/sft")

    with process_groups(Layout()):
        yield make


def test_numbers_that_are_none(make_check):
    check = make_check()
    assert check.fault(1.0, 1.0) is None and check.fault(1.0, 1e9) is None
    for number in (math.nan, math.inf, -math.inf):
        assert check.fault(number, 1.0) == "the loss is not a number"
        assert check.fault(1.0, number) == "the gradient is not a number"


def test_a_spike_is_measured_by_the_median_once_that_has_settled(make_check):
    check = make_check(spike=3.0)
    for step in range(SETTLED):
        assert check.passes(step, 1.0, 100.0 if step == 2 else 1.0, str)
    assert check.fault(1.0, 3.0) is None
    assert check.fault(1.0, 3.1) == "the gradient norm is 3.1, and its median 1"
    for step in range(2 * WINDOW):
        assert check.passes(step, 1.0, 2.9, str)
    assert len(check.progress.gradient_norms) == WINDOW and check.fault(1.0, 8.0) is None


def test_a_bad_step_stops_with_its_items_by_default(make_check):
    with pytest.raises(BarError, match=r"math/sft: the loss is not a number at step 7 \(rows 3\)"):
        make_check().passes(7, math.nan, 1.0, lambda: "rows 3")


def test_skips_are_counted_and_bounded(make_check):
    check = make_check(on_bad_step="skip", max_skips=2)
    assert [check.passes(s, loss, 1.0, str) for s, loss in enumerate((math.nan, 1.0))] == [
        False,
        True,
    ]
    assert check.progress.skipped == 1 and check.progress.skipped_in_a_row == 0
    assert check.progress.gradient_norms == [1.0]
    assert not check.passes(3, math.nan, 1.0, str) and not check.passes(4, math.nan, 1.0, str)
    with pytest.raises(BarError, match="after 2 skipped steps in a row"):
        check.passes(5, math.nan, 1.0, str)


@pytest.mark.parametrize(
    "skipped, summary",
    [
        (0, "loss 1.500"),
        (2, "loss 1.500"),
        (3, "warning: nothing was learned, all 3 steps were bad and skipped"),
    ],
)
def test_a_stage_that_skipped_all_its_steps_says_so(skipped, summary):
    assert TrainingResult(3, 100, 7, 7, skipped, 1.5).summary == summary
