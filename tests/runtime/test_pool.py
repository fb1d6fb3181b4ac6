"""Work on several processes ends, or says why it doesn't."""

from __future__ import annotations

import os
import signal

import pytest

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.pool import WorkerKilled, cores, spread
from megatron_bar.runtime.stopping import STOP_SIGNALS


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_once(processes):
    assert sorted(spread(lambda n: n * n, range(10), processes)) == [n * n for n in range(10)]
    assert list(spread(lambda n: n, [], processes)) == []


def test_on_children():
    ids = set(spread(lambda n: os.getpid(), range(8), 2))
    assert os.getpid() not in ids and len(ids) <= 2
    assert set(spread(lambda n: os.getpid(), range(8), 1)) == {os.getpid()}
    assert 1 <= cores() <= os.cpu_count()


def test_a_fault_in_a_child_is_the_callers():
    def refuse(n: int) -> None:
        raise BarError(f"line {n} is wrong")

    with pytest.raises(BarError, match="line 7 is wrong"):
        list(spread(refuse, [7, 7, 7], 2))


def test_a_killed_child_is_noticed():
    with pytest.raises(WorkerKilled, match="was killed, most likely for want of memory"):
        list(spread(lambda n: os.kill(os.getpid(), signal.SIGKILL), range(4), 2))


def test_a_stop_signal_is_for_the_parent_to_obey():
    """A terminal and systemd give it to all processes at once."""

    def hit(n: int) -> int:
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        return n

    assert sorted(spread(hit, range(4), 2)) == [0, 1, 2, 3]
