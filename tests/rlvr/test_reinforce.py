"""The default backend on our model: every layout the same, and a killed run the same bits."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.learner import SAMPLES_FILE
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import ContinueLater
from megatron_bar.stages.rlvr import RLVR_GROUPS
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.kills import kill_somewhere
from tests.layouts import EXPERTS
from tests.rlvr import ranks

pytestmark = pytest.mark.distributed


def _start(checkpoint: Path, layout: Layout, settings: Rlvr, folder: Path, *more) -> processes.Job:
    folder.mkdir(exist_ok=True)
    return processes.start(
        ranks.run_reinforce,
        checkpoint,
        layout,
        settings,
        folder,
        *more,
        processes=layout.processes,
        timeout_seconds=200,
    )


def _reinforce(checkpoint: Path, layout: Layout, settings: Rlvr, folder: Path, *more) -> Path:
    _start(checkpoint, layout, settings, folder, *more).wait()
    return folder


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert group_digests(ours / "checkpoint") == group_digests(theirs / "checkpoint")
    assert _samples(ours) == _samples(theirs)
    for mine, other in zip(read_metrics(ours), read_metrics(theirs), strict=True):
        assert _untimed(mine) == _untimed(other)


def _untimed(line: dict) -> dict:
    return {
        name: value
        for name, value in line.items()
        if not (name.startswith("seconds_") or name.endswith("waiting_share"))
        and name != "slowest_rank"
    }


def _samples(folder: Path) -> list[str]:
    return (folder / SAMPLES_FILE).read_text().splitlines()


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> Path:
    return _reinforce(checkpoint, Layout(), Rlvr(**ranks.SETTINGS), tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("name", ["tp2", "pp2", "dp2", "ep2", "tp2pp2ep2"])
def test_every_layout_takes_the_same_steps_on_the_same_samples(name, checkpoint, alone, tmp_path):
    found = _reinforce(checkpoint, EXPERTS[name], Rlvr(**ranks.SETTINGS), tmp_path / "run")
    assert _samples(found) == _samples(alone)
    ours, theirs = read_metrics(found), read_metrics(alone)
    assert len(ours) == len(theirs) == ranks.SETTINGS["steps"]
    for mine, other in zip(ours, theirs):
        assert mine["reward"] == other["reward"]
        for key in ("loss", "entropy", "kl", "grad_norm", "clip_fraction"):
            assert mine[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
        assert 0 <= mine["ranks_waiting_share"] < 1 and "slowest_rank" not in other
        # Sampled and trained with the same numbers, though one is a token at a time.
        assert mine["rollout_logprob_gap_max"] < 1e-4
    results = [json.loads((folder / "trained.json").read_text()) for folder in (found, alone)]
    assert results[0]["updates"] == results[1]["updates"] == 2 * ranks.SETTINGS["steps"]
    before, after = group_digests(checkpoint), group_digests(found / "checkpoint")
    assert {g for g in before if before[g] != after[g]} == set(RLVR_GROUPS)


def test_frozen_shared_parameters_stay(checkpoint, tmp_path):
    settings = Rlvr(**ranks.SETTINGS | dict(trainable=["expert.1", "router.1"], steps=2))
    found = _reinforce(checkpoint, Layout(), settings, tmp_path / "run")
    before, after = group_digests(checkpoint), group_digests(found / "checkpoint")
    assert {g for g in before if before[g] != after[g]} == {"expert.1", "router.1"}


def test_a_run_killed_at_a_save_goes_on_to_the_same_bits(checkpoint, tmp_path):
    settings = Rlvr(**ranks.SETTINGS | dict(save_every=1))
    whole = _reinforce(checkpoint, EXPERTS["ep2"], settings, tmp_path / "whole")
    with pytest.raises(JobFailed):
        _reinforce(checkpoint, EXPERTS["ep2"], settings, tmp_path / "killed", True)
    killed = _reinforce(checkpoint, EXPERTS["ep2"], settings, tmp_path / "killed")
    assert_same_run(killed, whole)


@pytest.mark.parametrize(
    "name, place", [("ep2", "generate"), ("pp2", "generate"), ("dp2", "verify")]
)
def test_a_stop_signal_within_a_step_gives_it_up_and_it_is_taken_later(
    name, place, checkpoint, tmp_path
):
    """One rank is signalled. Without giving the step up it makes 16 calls or more."""
    layout = EXPERTS[name]
    settings = Rlvr(**ranks.SETTINGS | dict(verifier_workers=1, steps=2))
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    job = processes.start(
        ranks.run_until_asked,
        checkpoint,
        layout,
        settings,
        stopped,
        place,
        processes=layout.processes,
        timeout_seconds=200,
    )
    with pytest.raises(ContinueLater):
        job.wait()
    assert [line["step"] for line in read_metrics(stopped)] == [1]
    assert [path.name for path in (stopped / "resume").iterdir()] == ["1"]
    calls = [len(path.read_text().splitlines()) for path in stopped.glob("calls-*")]
    assert calls and max(calls) <= 7
    if place == "verify":
        _reinforce(checkpoint, layout, settings, stopped)
        assert_same_run(stopped, _reinforce(checkpoint, layout, settings, tmp_path / "whole"))


def test_a_run_saves_and_goes_on_before_there_was_an_update(checkpoint, tmp_path):
    """Answers are cut after a token, and worth nothing then, so no group has anything to teach."""
    settings = Rlvr(**ranks.SETTINGS | dict(save_every=1, truncated="zero", response_length=1))
    whole = _reinforce(checkpoint, EXPERTS["dp2"], settings, tmp_path / "whole")
    assert json.loads((whole / "trained.json").read_text())["updates"] == 0
    with pytest.raises(JobFailed, match="exit status -9"):
        _reinforce(checkpoint, EXPERTS["dp2"], settings, tmp_path / "killed", True)
    killed = _reinforce(checkpoint, EXPERTS["dp2"], settings, tmp_path / "killed")
    assert_same_run(killed, whole)
    assert group_digests(whole / "checkpoint") == group_digests(checkpoint)


def test_a_run_killed_at_random_points_goes_on_to_the_same_bits(checkpoint, tmp_path):
    """In rollouts, verification, updates and saves; prompts and sampling included."""
    settings = Rlvr(**ranks.SETTINGS | dict(steps=12, save_every=2, keep=2))
    whole = _reinforce(checkpoint, Layout(), settings, tmp_path / "whole")
    step = statistics.median(line["seconds_step"] for line in read_metrics(whole))
    chance = random.Random(0)
    in_saves = 0
    for kill in range(5):
        job = _start(checkpoint, Layout(), settings, tmp_path / "killed")
        during_save = kill % 2 == 1
        in_saves += kill_somewhere(
            job,
            tmp_path / "killed",
            during_save,
            chance,
            within_seconds=0.02 if during_save else step,
        )
        assert not (tmp_path / "killed" / "checkpoint").exists(), "the run was over too soon"
    assert in_saves >= 1
    killed = _reinforce(checkpoint, Layout(), settings, tmp_path / "killed")
    assert_same_run(killed, whole)


def test_training_raises_the_reward(checkpoint, tmp_path):
    settings = Rlvr(
        **ranks.SETTINGS
        | dict(
            steps=12,
            prompts_per_step=8,
            global_batch_size=32,
            micro_batch_size=8,
            lr=2e-2,
            kl_coefficient=0,
            weight_decay=0.0,
            rollout_batch_size=32,
            response_length=12,
        )
    )
    found = _reinforce(checkpoint, Layout(), settings, tmp_path / "run")
    rewards = [m["reward"] for m in read_metrics(found)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.6
