"""A stage that has learned nothing says so."""

from __future__ import annotations

import pytest

from megatron_bar.stages.train import _summary
from megatron_bar.training.loop import Trained


@pytest.mark.parametrize("skipped, summary", [
    (0, "loss 1.500"), (2, "loss 1.500"),
    (3, "warning: nothing was learned, all 3 steps were bad and skipped"),
])
def test_the_line_of_a_stage_that_trains(skipped, summary):
    assert _summary(Trained(3, 100, 7, 7, skipped, 1.5)) == summary
