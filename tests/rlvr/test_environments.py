"""Several turns with an environment: every backend and layout takes the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.launch import processes
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.backends import BACKENDS, backend_of
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.generation.openai_server import CompletionServer, serving
from tests.layouts import EXPERTS
from tests.rlvr import ranks
from tests.rlvr.test_reinforce import assert_same_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        any(backend_of(name).missing() for name in BACKENDS), reason="needs the extra nemo-aligner"
    ),
]
SETTINGS = ranks.SETTINGS | dict(steps=2, response_length=36, max_turns=3)


def _run(checkpoint: Path, folder: Path, layout: Layout = EXPERTS["tp1"], **settings) -> Path:
    folder.mkdir(exist_ok=True)
    processes.start(
        ranks.run_conversations,
        checkpoint,
        layout,
        Rlvr(**SETTINGS | settings),
        folder,
        processes=layout.processes,
        timeout_seconds=200,
    ).wait()
    return folder


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> Path:
    return _run(checkpoint, tmp_path_factory.mktemp("alone"), backend="native")


def test_conversations_have_several_turns_that_failures_do_not_end(alone):
    for line in read_metrics(alone):
        assert 1.2 < line["turns"] < 3 and line["verifier_failures"] > 0
        assert line["rollout_logprob_gap_max"] < 1e-4 and line["kl"] < 1 and line["grad_norm"]
        assert line["waiting_share"] == pytest.approx(
            (line["seconds_environment"] + line["seconds_verification"]) / line["seconds_step"]
        )
    sample = json.loads((alone / "samples.jsonl").read_text().splitlines()[-1])
    assert set(sample) == {"step", "verifier", "prompt", "response", "reward"}


def test_other_backends_take_the_same_steps(checkpoint, alone, tmp_path):
    other = _run(checkpoint, tmp_path / "other", backend="nemo_aligner")
    assert_same_run(other, alone)
    assert group_digests(other / "checkpoint") == group_digests(alone / "checkpoint")


@pytest.mark.parametrize("layout", ["tp2", "dp2", "ep2"])
def test_other_layouts_sample_the_same_conversations(checkpoint, alone, layout, tmp_path):
    """Where experts are spread, ranks with fewer conversations in a round keep step."""
    found = _run(checkpoint, tmp_path / "run", EXPERTS[layout], backend="native", steps=1)
    (line,), (first, _) = read_metrics(found), read_metrics(alone)
    for key in ("reward", "turns", "response_length", "truncated", "verifier_failures"):
        assert line[key] == pytest.approx(first[key])
    assert line["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("ahead", [0, 1])
def test_servers_are_asked_turn_by_turn(checkpoint, ahead, tmp_path):
    export_hf(checkpoint, tmp_path / "served")
    server = CompletionServer(tmp_path / "served")
    with serving(server) as address:
        folder = _run(
            checkpoint,
            tmp_path / "run",
            backend="native",
            rollouts_ahead=ahead,
            truncated_importance_sampling=2.0,
            rollout_servers=[address],
            rollout_folder=str(tmp_path / "served"),
        )
    lines = read_metrics(folder)
    answers = SETTINGS["prompts_per_step"] * SETTINGS["samples_per_prompt"]
    assert sum(line["turns"] for line in lines) * answers == len(server.requests)
    assert len({asked["seed"] for asked in server.requests}) == len(server.requests)
    assert lines[0]["rollout_logprob_gap_max"] < 1e-4
