"""What counts as a bad step, in one process."""

from __future__ import annotations

import math

import pytest

from megatron_bar.recipe.schema import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.guards import SETTLED, WINDOW, Guard
from megatron_bar.training.loop import Trained
from megatron_bar.training.resume import Progress


@pytest.fixture
def guard():
    def make(**settings) -> Guard:
        return Guard(Training(**settings), Progress(), "math/sft")

    with process_groups(Layout()):
        yield make


def test_numbers_that_are_none(guard):
    judge = guard()
    assert judge.fault(1.0, 1.0) is None and judge.fault(1.0, 1e9) is None
    for number in (math.nan, math.inf, -math.inf):
        assert judge.fault(number, 1.0) == "the loss is not a number"
        assert judge.fault(1.0, number) == "the gradient is not a number"


def test_a_spike_is_told_from_the_median_once_that_has_settled(guard):
    judge = guard(spike=3.0)
    for step in range(SETTLED):
        assert judge.passes(step, 1.0, 100.0 if step == 2 else 1.0, str)
    assert judge.fault(1.0, 3.0) is None
    assert judge.fault(1.0, 3.1) == "the gradient norm is 3.1, and its median 1"
    for step in range(2 * WINDOW):
        assert judge.passes(step, 1.0, 2.9, str)
    assert len(judge.progress.gradient_norms) == WINDOW and judge.fault(1.0, 8.0) is None


def test_a_bad_step_stops_with_its_items_by_default(guard):
    with pytest.raises(BarError, match=r"math/sft: the loss is not a number at step 7 \(rows 3\)"):
        guard().passes(7, math.nan, 1.0, lambda: "rows 3")


def test_skips_are_counted_and_bounded(guard):
    judge = guard(on_bad_step="skip", max_skips=2)
    assert [judge.passes(s, loss, 1.0, str) for s, loss in enumerate((math.nan, 1.0))] == [
        False, True
    ]
    assert judge.progress.skipped == 1 and judge.progress.skipped_in_a_row == 0
    assert judge.progress.gradient_norms == [1.0]
    assert not judge.passes(3, math.nan, 1.0, str) and not judge.passes(4, math.nan, 1.0, str)
    with pytest.raises(BarError, match="after 2 skipped steps in a row"):
        judge.passes(5, math.nan, 1.0, str)


@pytest.mark.parametrize("skipped, summary", [
    (0, "loss 1.500"), (2, "loss 1.500"),
    (3, "warning: nothing was learned, all 3 steps were bad and skipped"),
])
def test_a_stage_that_skipped_all_its_steps_says_so(skipped, summary):
    assert Trained(3, 100, 7, 7, skipped, 1.5).summary == summary
