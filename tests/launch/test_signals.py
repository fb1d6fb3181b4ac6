"""A stop signal to all processes of a run at once, as a terminal, systemd or SLURM gives it; and a
stop file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from megatron_bar.runtime.stopping import CONTINUE_LATER
from megatron_bar.training.metrics import read_metrics
from megatron_bar.training.saved import saved_steps
from tests.launch.conftest import small_recipe
from tests.survivors import assert_group_ends

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

# More steps than it gets to do. Helpers that save a state are there when the signal comes.
_LONG = {"steps": 5000, "save_every": 2, "log_every": 1, "layout": {"processes": 2}}


def _hear_ctrl_c() -> None:
    """A shell that runs the tests in the background may have us ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(recipe: Path) -> subprocess.Popen:
    """A run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_bar", "run", str(recipe)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
    )


@pytest.fixture
def started(tmp_path) -> Iterator[subprocess.Popen]:
    recipe = small_recipe(tmp_path)
    recipe["pretrain"]["training"] |= _LONG
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    process = _start(tmp_path / "small.yaml")
    yield process
    process.kill()
    process.wait()


def _wait_for_steps(process: subprocess.Popen, stage: Path, steps: int) -> None:
    while len(read_metrics(stage)) < steps:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=str)
def test_every_rank_saves_and_all_end(number, started, tmp_path):
    stage = tmp_path / "small" / "base"
    _wait_for_steps(started, stage, 5)
    os.killpg(started.pid, number)
    said = started.communicate()[0]
    assert started.returncode == CONTINUE_LATER, said
    assert saved_steps(stage) == [len(read_metrics(stage))]
    assert "base: stopped, to go on later" in said and "run it again to go on" in said
    log = (tmp_path / "small" / "logs" / "base.txt").read_text()
    assert f"asked by {number.name}, saved after step" in log and "Traceback" not in said + log
    assert "differs from rank 0" not in log
    assert_group_ends(started.pid, seconds=60)


def test_a_signal_before_the_first_rank_has_started_is_not_lost(started, tmp_path):
    while not (tmp_path / "small" / "logs").exists():
        assert started.poll() is None
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGTERM)
    said = started.communicate()[0]
    assert started.returncode == CONTINUE_LATER and "Traceback" not in said, said
    assert_group_ends(started.pid, seconds=60)


def test_who_presses_ctrl_c_twice_waits_no_longer(started, tmp_path):
    """The ranks are halted, so they can't save: only the second one ends the run."""
    stage = tmp_path / "small" / "base"
    _wait_for_steps(started, stage, 1)
    helpers = psutil.Process(started.pid).children()
    ranks = [rank for helper in helpers for rank in helper.children()]
    assert len(ranks) == 2
    for rank in ranks:
        rank.suspend()
    os.killpg(started.pid, signal.SIGINT)
    time.sleep(1)
    assert started.poll() is None
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=60)[0]
    assert started.returncode == 130 and "Ctrl-C ends it at once" in said
    assert_group_ends(started.pid, seconds=60)


def test_a_stop_file_stops_a_run_and_the_next_start_removes_it(started, tmp_path):
    """First in the run's folder, then in the stage's."""
    run, stage = tmp_path / "small", tmp_path / "small" / "base"
    _wait_for_steps(started, stage, 3)
    (run / "STOP").touch()
    said = started.communicate()[0]
    assert started.returncode == CONTINUE_LATER and "run it again to go on" in said, said
    steps = len(read_metrics(stage))
    assert saved_steps(stage) == [steps]
    log = (run / "logs" / "base.txt").read_text()
    assert f"asked by the file STOP, which run and submit remove, saved after step {steps}" in log
    again = _start(tmp_path / "small.yaml")
    try:
        _wait_for_steps(again, stage, steps + 1)
        (stage / "STOP").touch()
        said = again.communicate()[0]
    finally:
        again.kill()
    assert again.returncode == CONTINUE_LATER, said
    assert "small/STOP is removed, so that the run goes on" in said.replace("\n", "")
    assert saved_steps(stage)[-1] == len(read_metrics(stage)) > steps
