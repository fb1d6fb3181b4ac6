"""Rollouts a step ahead of training, by a server that answers meanwhile."""

from __future__ import annotations

import pytest

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.launch import processes
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.backends import BACKENDS, backend_of
from megatron_bar.rlvr.conversations import Answer
from megatron_bar.rlvr.rollouts_ahead import PendingRollout
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.metrics import read_metrics
from tests.generation.openai_server import CompletionServer, serving
from tests.layouts import EXPERTS
from tests.rlvr import ranks
from tests.rlvr.test_reinforce import assert_same_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        any(backend_of(name).missing() for name in BACKENDS), reason="needs the extra rlvr"
    ),
]


def _run(checkpoint, backend, folder):
    """Three steps in two tensor-parallel ranks; the stage's folder and the server."""
    folder.mkdir()
    export_hf(checkpoint, folder / "served")
    server = CompletionServer(folder / "served")
    with serving(server) as address:
        settings = Rlvr(
            **ranks.SETTINGS
            | dict(
                backend=backend,
                rollouts_ahead=1,
                truncated_importance_sampling=2.0,
                lr=1e-2,
                rollout_servers=[address],
                rollout_folder=str(folder / "served"),
            )
        )
        processes.start(
            ranks.run_reinforce,
            checkpoint,
            EXPERTS["tp2"],
            settings,
            folder,
            processes=2,
            timeout_seconds=200,
        ).wait()
    return folder, server


def test_what_servers_failed_to_answer_is_asked_for_again(capsys):
    def fail():
        raise BarError("http://a doesn't answer")

    again = [Answer([7], [True], [-1.0], stopped=True)], 0.5
    with process_groups(Layout()):
        assert PendingRollout(fail, lambda: again).result() == again
    assert "http://a doesn't answer; the rollout is asked for again" in capsys.readouterr().out


def test_answers_come_from_the_weights_of_a_step_ago_and_are_weighed(checkpoint, tmp_path):
    (first, server), *others = (_run(checkpoint, name, tmp_path / name) for name in BACKENDS)
    steps = read_metrics(first)
    responses = ranks.SETTINGS["prompts_per_step"] * ranks.SETTINGS["samples_per_prompt"]
    assert len(server.requests) == responses * len(steps)
    assert len({asked["seed"] for asked in server.requests}) == len(server.requests)
    # The weights of the stage's start answer the first two steps, those of step n the step n + 2.
    assert server.reloads == len(steps) - 1
    assert steps[0]["rollout_logprob_gap_max"] < 1e-4
    for step in steps[1:]:
        assert step["rollout_logprob_gap"] > 1e-3 and step["importance_weight"] != 1
    for step in steps:
        assert 0 < step["waiting_share"] < 1 and step["seconds_servers"] > 0
        assert 0 <= step["servers_waiting_share"] < 1
    for other, _ in others:
        assert_same_run(other, first)
