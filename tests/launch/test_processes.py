"""Ranks, and what they fork, end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from types import FunctionType

import pytest
import torch
import torch.distributed as dist

from megatron_bar.launch import processes
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.survivors import assert_group_ends

ROOT = Path(__file__).parents[2]
RANKS = 2
pytestmark = pytest.mark.distributed


def _sleep(out: Path) -> None:
    (out / str(os.getpid())).touch()
    time.sleep(600)


def _compute_for_ever(out: Path) -> None:
    with process_groups(Layout(processes=RANKS)):
        (out / str(os.getpid())).touch()
        multiprocessing.get_context("fork").Process(target=_sleep, args=(out,)).start()
        while True:
            dist.all_reduce(torch.ones(1000))


def start_and_wait(out: Path) -> None:
    """What the process does that the test kills."""
    processes.start(_compute_for_ever, out, processes=RANKS).wait()


@pytest.mark.parametrize("gpus", [0, RANKS], ids=["forked", "programs of their own"])
def test_nothing_outlives_the_process_that_started_it(gpus, tmp_path):
    code = (
        "from pathlib import Path; from tests.launch.test_processes import start_and_wait; "
        f"import torch; torch.cuda.device_count = lambda: {gpus}; "
        f"start_and_wait(Path({str(tmp_path)!r}))"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    while len(list(tmp_path.iterdir())) < 2 * RANKS:
        assert starter.poll() is None
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    assert_group_ends(starter.pid, seconds=20)


def test_ranks_leave_the_script_alone_that_starts_them(monkeypatch):
    """Without `if __name__ == "__main__"` they would run it again, each."""
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "__spec__", None)
    monkeypatch.setattr(script, "__file__", "/somewhere/script.py", raising=False)

    def imported(function: Callable[..., None]) -> set[str]:
        with processes._script_left_alone(function):
            return {key for key in spawn.get_preparation_data("rank") if "main" in key}

    assert imported(os.getcwd) == set()
    assert script.__file__ == "/somewhere/script.py"
    own = FunctionType((lambda: None).__code__, {"__name__": "__main__"})
    assert imported(own) == {"init_main_from_path"}
