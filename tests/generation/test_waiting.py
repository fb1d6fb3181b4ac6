"""Waiting for others' work, which a stop ends."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from megatron_bar.generation.waiting import map_in_background, wait_for
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import CutShort, StopAtStep


def test_work_is_waited_for_and_its_errors_are_raised():
    with process_groups(Layout()):
        assert wait_for(lambda: 3) == 3
        assert wait_for(None) is None
        with pytest.raises(LookupError, match="gone"):
            wait_for(lambda: {}["gone"])


@pytest.mark.timeout(30)
def test_waiting_ends_where_the_stage_is_asked_to_stop_at_once(tmp_path):
    never = threading.Event()
    with process_groups(Layout()), StopAtStep(tmp_path, minutes=1e-9) as stop:
        assert wait_for(lambda: 3) == 3  # minutes of the recipe are no reason to give work up
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(CutShort):
            wait_for(never.wait)
        assert stop.reason_on_any_rank(urgent=True) == "asked by SIGTERM"


def test_the_stop_file_cuts_work_short_too(tmp_path):
    with process_groups(Layout()), StopAtStep(tmp_path) as stop:
        (tmp_path / "STOP").touch()
        with pytest.raises(CutShort):
            wait_for(threading.Event().wait)
        (tmp_path / "STOP").unlink()
        assert "STOP" in stop.reason_on_any_rank(urgent=True)


def test_a_map_keeps_the_order_and_works_on_some_at_once():
    at_work, most, lock = [], [], threading.Lock()

    def double(number: int) -> int:
        with lock:
            at_work.append(number)
            most.append(len(at_work))
        time.sleep(0.01 * (5 - number))
        with lock:
            at_work.remove(number)
        return 2 * number

    assert map_in_background(double, range(5), 2) == [0, 2, 4, 6, 8]
    assert max(most) == 2
    assert map_in_background(double, [], 2) == []
    with pytest.raises(ZeroDivisionError):
        map_in_background(lambda number: 1 / number, [1, 0], 2)
