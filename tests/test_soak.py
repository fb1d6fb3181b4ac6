"""A few minutes of the soak test, with a seed."""

from __future__ import annotations

import pytest

from tests.disturbed_runs import LocalRun
from tests.soak import soak, undisturbed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

_STEPS = 0.1  # of the recipe's


def test_a_run_that_is_disturbed_every_few_seconds_ends_with_the_undisturbed_bits(tmp_path):
    expected = undisturbed(tmp_path, _STEPS)
    run = LocalRun(tmp_path, "disturbed", _STEPS)
    struck = soak(run, every=3, seed="0", expected=expected, at_most=10)
    print(dict(struck))
    # The faster the machine, the sooner it is done; each kind strikes before any strikes again.
    assert sum(struck[fault] > 0 for fault in run.faults()) >= 4
