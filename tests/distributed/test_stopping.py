"""A stage that is killed, or asked to stop, at any moment goes on to the same bits."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import ContinueLater
from megatron_bar.stages.train import MIDTRAIN_GROUPS
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed.stages import run, start, training
from tests.kills import kill_somewhere
from tests.layouts import EXPERTS

pytestmark = pytest.mark.distributed

KILLS = [("tp1", False, 3), ("tp1", True, 2), ("ep2", False, 2), ("ep2", True, 1)]
STEPS = 60  # more than are taken until the last kill
DECIDED = ("step", "loss", "lr", "grad_norm", "tokens", "router_load")


def _assert_same_run(ours: Path, theirs: Path) -> None:
    assert group_digests(ours / "checkpoint") == group_digests(theirs / "checkpoint")
    assert [[m[key] for key in DECIDED] for m in read_metrics(ours)] == [
        [m[key] for key in DECIDED] for m in read_metrics(theirs)
    ]
    assert not (ours / "resume").exists()


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> Callable[[str], Path]:
    """A run in a layout that nothing stops, and that saves nothing on its way."""

    @functools.cache
    def made(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        settings = training(MIDTRAIN_GROUPS, steps=STEPS, save_every=2 * STEPS)
        run(checkpoint, EXPERTS[name], settings, folder)
        return folder

    return made


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name, save_async, kills", KILLS)
def test_sigkill_at_random_points(name, save_async, kills, whole, checkpoint, tmp_path):
    settings = training(MIDTRAIN_GROUPS, steps=STEPS, save_every=2, keep=2, save_async=save_async)
    chance = random.Random(f"{name} {save_async}")
    in_saves = 0
    for kill in range(kills):
        job = start(checkpoint, EXPERTS[name], settings, tmp_path)
        during_save = kill % 2 == 0
        in_saves += kill_somewhere(
            job, tmp_path, during_save, chance, within_seconds=0.01 if during_save else 0.1
        )
        assert not (tmp_path / "checkpoint").exists(), "the run was over too soon"
    run(checkpoint, EXPERTS[name], settings, tmp_path)
    _assert_same_run(tmp_path, whole(name))
    assert in_saves >= 1
    print(f"{kills} kills, {in_saves} of them during a save")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=str)
def test_a_stop_signal_to_one_rank_saves_and_ends_all(number, checkpoint, tmp_path):
    settings = training(MIDTRAIN_GROUPS, steps=40, save_every=1000)
    layout = EXPERTS["ep2"]
    run(checkpoint, layout, settings, tmp_path / "whole")
    job = start(checkpoint, layout, settings, tmp_path / "stopped")
    while len(read_metrics(tmp_path / "stopped")) < 2:
        assert not job.poll()
        time.sleep(0.005)
    os.kill(job.ranks[1].pid, number)
    with pytest.raises(ContinueLater):
        job.wait()
    assert [rank.exitcode for rank in job.ranks] == [75, 75]
    saved = [int(path.name) for path in (tmp_path / "stopped" / "resume").iterdir()]
    assert len(saved) == 1 and saved[0] == len(read_metrics(tmp_path / "stopped")) < 40
    run(checkpoint, layout, settings, tmp_path / "stopped")
    _assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("save_async", [False, True])
def test_the_clock_stops_a_stage_and_the_last_points_are_kept(save_async, checkpoint, tmp_path):
    settings = training(
        MIDTRAIN_GROUPS,
        steps=2000,
        save_every=3,
        keep=2,
        stop_after_minutes=0.05,
        save_async=save_async,
    )
    with pytest.raises(ContinueLater):
        run(checkpoint, Layout(), settings, tmp_path / "run")
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "resume").iterdir())
    assert len(steps) == 2 and steps[1] == len(read_metrics(tmp_path / "run"))


def test_minutes_save_too(checkpoint, tmp_path):
    settings = training(MIDTRAIN_GROUPS, save_every=1000, save_every_minutes=1e-6)
    with pytest.raises(JobFailed):
        run(checkpoint, Layout(), settings, tmp_path / "run", die_at_save=True)
    assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == ["1"]


def test_a_bad_step_stops_with_its_items_and_leaves_no_checkpoint(checkpoint, tmp_path):
    settings = training(("*",), lr=1e30, max_grad_norm=0.0, save_every=1)
    with pytest.raises(JobFailed, match=r"(not a number).*") as raised:
        run(checkpoint, EXPERTS["dp2"], settings, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_spike_stops_with_its_rows_and_sources(checkpoint, tmp_path):
    settings = training(MIDTRAIN_GROUPS, steps=40, spike=1.02)
    with pytest.raises(
        JobFailed,
        match=r"gradient norm is .* its median .* at step \d+ "
        r"\(rows (\d+ of one\+two, ){3}\d+ of one\+two\)",
    ):
        run(checkpoint, EXPERTS["dp2"], settings, tmp_path / "run")


def test_skipped_steps_leave_model_and_optimizer_alone(checkpoint, tmp_path):
    """Also over a resume: the optimizer's count is of the steps it has taken."""
    changes = dict(spike=1.02, on_bad_step="skip", max_skips=30, schedule="constant", save_every=1)
    settings = training(MIDTRAIN_GROUPS, steps=24, **changes)
    run(checkpoint, Layout(), settings, tmp_path / "whole")
    skipped = [m["skipped"] for m in read_metrics(tmp_path / "whole")]
    assert 0 < skipped[-1] < 12
    first = skipped.index(1) + 1  # the step that was skipped first
    for steps in (first - 1, first):
        settings = training(MIDTRAIN_GROUPS, steps=steps, **changes)
        run(checkpoint, Layout(), settings, tmp_path / str(steps))
    assert group_digests(tmp_path / str(first - 1) / "checkpoint") == group_digests(
        tmp_path / str(first) / "checkpoint"
    )
    job = start(
        checkpoint, Layout(), training(MIDTRAIN_GROUPS, steps=24, **changes), tmp_path / "killed"
    )
    while not (tmp_path / "killed" / "resume" / str(first)).exists() and not job.poll():
        time.sleep(0.001)
    job.stop()
    run(checkpoint, Layout(), training(MIDTRAIN_GROUPS, steps=24, **changes), tmp_path / "killed")
    _assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    "name, changes",
    [
        ("dp2", {}),
        ("tp1", {"distributed_optimizer": False}),
        ("tp1", {"distributed_optimizer": False, "dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_a_stage_saves_and_goes_on_before_the_optimizer_has_stepped(
    name, changes, checkpoint, tmp_path
):
    settings = training(MIDTRAIN_GROUPS, on_bad_step="skip", save_every=1, **changes)
    run(checkpoint, EXPERTS[name], settings, tmp_path / "whole", bad_steps=2)
    with pytest.raises(JobFailed):
        run(checkpoint, EXPERTS[name], settings, tmp_path / "killed", bad_steps=2, die_at_save=True)
    assert (tmp_path / "killed" / "resume" / "1").is_dir()
    run(checkpoint, EXPERTS[name], settings, tmp_path / "killed", bad_steps=2)
    _assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_too_many_skips_in_a_row_stop(checkpoint, tmp_path):
    settings = training(
        ("*",),
        steps=40,
        lr=1e30,
        max_grad_norm=0.0,
        on_bad_step="skip",
        max_skips=3,
        save_every=1000,
    )
    with pytest.raises(JobFailed, match="after 3 skipped steps in a row"):
        run(checkpoint, Layout(), settings, tmp_path / "run")
