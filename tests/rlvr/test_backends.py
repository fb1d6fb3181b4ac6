"""Backends take the same steps, to the bit, and go on where another one stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.backends import BACKENDS, backend_of
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import ContinueLater
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.layouts import EXPERTS
from tests.rlvr import ranks
from tests.rlvr.test_reinforce import assert_same_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        any(backend_of(name).missing() for name in BACKENDS), reason="needs the extra nemo-aligner"
    ),
]


def _run(
    checkpoint: Path, layout: Layout, backend: str, folder: Path, *more: bool, **settings
) -> Path:
    folder.mkdir(exist_ok=True)
    processes.start(
        ranks.run_reinforce,
        checkpoint,
        layout,
        Rlvr(**ranks.SETTINGS | dict(backend=backend) | settings),
        folder,
        *more,
        processes=layout.processes,
        timeout_seconds=200,
    ).wait()
    return folder


@pytest.mark.parametrize("layout", ["tp1", "tp2", "dp2", "pp2"])
def test_all_take_the_same_steps(layout, checkpoint, tmp_path):
    """Same prompts, samples, rewards, losses and gradient norms at each step, and weights then."""
    first, *others = (
        _run(checkpoint, EXPERTS[layout], name, tmp_path / name, rollout_batch_size=2)
        for name in BACKENDS
    )
    metrics = read_metrics(first)
    assert [line["step"] for line in metrics if line["grad_norm"]] == [1, 2, 3]
    for other in others:
        assert_same_run(other, first)
        assert [line.keys() for line in read_metrics(other)] == [line.keys() for line in metrics]


# Each with truncated importance weights or an fp32 head, which go with every loss.
OBJECTIVES: dict[str, dict] = {
    "cispo": dict(loss_type="cispo", truncated_importance_sampling=2.0),
    "gspo": dict(loss_type="gspo", clip_low=3e-4, clip_high=4e-4, fp32_lm_head=True),
    "dapo": dict(truncated_importance_sampling=1.0, dtype="bfloat16", fp32_lm_head=True),
}


def test_all_take_the_same_steps_by_every_objective(checkpoint, tmp_path):
    settings = {
        name: Rlvr(**ranks.SETTINGS | dict(steps=1) | more) for name, more in OBJECTIVES.items()
    }
    for backend in BACKENDS:
        processes.start(
            ranks.run_all, checkpoint, settings, backend, tmp_path / backend, timeout_seconds=200
        ).wait()
    first, *others = (tmp_path / backend for backend in BACKENDS)
    digests = {name: tuple(group_digests(first / name / "checkpoint").items()) for name in settings}
    assert len(set(digests.values())) == len(OBJECTIVES)
    for name in settings:
        line = read_metrics(first / name)[-1]
        assert line["grad_norm"] and ("importance_weight" in line) == (name != "gspo")
        if name == "cispo":  # the training model itself has generated
            assert line["importance_weight"] == pytest.approx(1, abs=1e-4)
        for other in others:
            assert_same_run(other / name, first / name)


def test_where_there_is_nothing_to_learn_nothing_moves(checkpoint, tmp_path):
    nothing = dict(truncated="zero", response_length=1, kl_coefficient=0.0, kl_every=2)
    first, *others = (
        _run(checkpoint, EXPERTS["dp2"], name, tmp_path / name, **nothing) for name in BACKENDS
    )
    for other in others:
        assert_same_run(other, first)
    assert ["kl" in line for line in read_metrics(first)] == [False, True, False]
    assert group_digests(first / "checkpoint") == group_digests(checkpoint)


def test_each_goes_on_where_another_stopped(checkpoint, tmp_path):
    whole = _run(checkpoint, EXPERTS["dp2"], "native", tmp_path / "whole")
    parts = tmp_path / "parts"
    for name in ("native", "nemo_aligner"):
        with pytest.raises(ContinueLater):
            _run(checkpoint, EXPERTS["dp2"], name, parts, stop_after_minutes=1e-9)
    assert len(read_metrics(parts)) == 2  # a step each
    assert_same_run(_run(checkpoint, EXPERTS["dp2"], "native", parts), whole)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_run_that_is_killed_goes_on_from_what_it_saved_by_the_clock(name, checkpoint, tmp_path):
    often = dict(save_every=100, save_every_minutes=1e-9)
    whole = _run(checkpoint, Layout(), name, tmp_path / "whole")
    with pytest.raises(JobFailed, match="exit status -9"):
        _run(checkpoint, Layout(), name, tmp_path / "killed", True, **often)
    assert_same_run(_run(checkpoint, Layout(), name, tmp_path / "killed"), whole)
