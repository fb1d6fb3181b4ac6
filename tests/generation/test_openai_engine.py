"""Rollouts by a server that holds the export, against generation in the training processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.generation import openai_engine
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.openai_engine import OpenAIEngine, request_seed
from megatron_bar.launch import processes
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.metrics import read_metrics
from tests.generation.openai_server import CompletionServer, serving
from tests.layouts import EXPERTS
from tests.rlvr import ranks

PROMPTS = [[5, 17, 200], [9], [3, 3, 3, 250, 7, 8]]


def _ask(layout: Layout, server: str, sampling: Sampling, out: Path) -> None:
    with process_groups(layout):
        requests = [Request(prompt, (4, i)) for i, prompt in enumerate(PROMPTS)]
        responses = OpenAIEngine([server], 2, 64).generate(requests, sampling)
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps([vars(r) for r in responses]))


@pytest.mark.distributed
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_server_gives_what_the_model_itself_gives(model, temperature, tmp_path):
    sampling = Sampling(10, frozenset({7}), temperature, seed=3)
    served = CompletionServer(model / "hf")
    (tmp_path / "own").mkdir()
    with serving(served) as server:
        processes.start(_ask, EXPERTS["tp2"], server, sampling, tmp_path, processes=2).wait()
    answers = [json.loads(path.read_text()) for path in tmp_path.glob("rank-*.json")]
    assert len(answers) == 2 and answers[0] == answers[1]
    assert len(served.requests) == len(PROMPTS)  # one rank asks for both
    processes.start(
        ranks.score_responses, model / "checkpoint", PROMPTS, answers[0],
        temperature or 1.0, tmp_path / "own",
    ).wait()
    for found, own in zip(answers[0], json.loads((tmp_path / "own" / "logprobs.json").read_text())):
        assert found["logprobs"] == pytest.approx(own, abs=1e-4)
    if temperature == 0:
        own = ranks.generated(
            model / "checkpoint", Layout(), PROMPTS, sampling, 3, tmp_path / "greedy"
        )
        assert [r["tokens"] for r in answers[0]] == [r["tokens"] for r in own]


@pytest.mark.distributed
def test_a_stage_whose_rollouts_are_served_trains_on_its_own_weights(model, tmp_path):
    """Were the weights not refreshed, log-probabilities of rollout and training would part."""
    export_hf(model / "checkpoint", tmp_path / "served")
    served = CompletionServer(tmp_path / "served")
    with serving(served) as server:
        settings = Rlvr(**ranks.SETTINGS | dict(
            rollout_servers=[server], rollout_folder=str(tmp_path / "served"), lr=1e-2,
        ))
        (tmp_path / "run").mkdir()
        processes.start(
            ranks.run_reinforce, model / "checkpoint", EXPERTS["dp2"], settings, tmp_path / "run",
            processes=2, timeout_seconds=200,
        ).wait()
    metrics = read_metrics(tmp_path / "run")
    assert served.reloads == len(metrics) == settings.steps
    assert all(line["rollout_logprob_gap_max"] < 1e-4 for line in metrics)
    assert metrics[-1]["kl"] > 1e-3  # the weights did move
    assert len({json.dumps(asked["seed"]) for asked in served.requests}) == len(served.requests)


class _Answers:
    def __init__(self, completion) -> None:
        self.completion = completion

    def get(self, path):
        return {"data": [{"id": "policy"}]}

    def post(self, path, content):
        return self.completion


@pytest.mark.parametrize("completion, message", [
    ({"choices": [{"text": "x"}]}, "lacks token ids or their log-probabilities"),
    (b"out of memory", "answers 500: out of memory"),
])
def test_what_a_server_does_wrong_is_reported(completion, message):
    with serving(_Answers(completion)) as server, process_groups(Layout()):
        engine = OpenAIEngine([server], 1, 64)
        with pytest.raises(BarError, match=message):
            engine.generate([Request([1, 2])], Sampling(4, frozenset({0})))


def test_a_server_that_is_not_there_is_reported():
    with process_groups(Layout()), pytest.raises(BarError, match=r"/v1/models doesn't answer"):
        OpenAIEngine(["http://127.0.0.1:9"], 1, 64).generate([], Sampling(4, frozenset()))


def test_connections_are_used_again():
    answers = _Answers({"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}]})
    answers.connections = []
    with serving(answers) as server, process_groups(Layout()):
        requests = [Request([1, 2], (number,)) for number in range(20)]
        OpenAIEngine([server], 2, 64).generate(requests, Sampling(4, frozenset({0})))
    assert len(answers.connections) <= 2


@pytest.mark.timeout(60)
def test_a_server_that_takes_no_connection_is_given_up_soon(monkeypatch):
    """An answer may take an hour, a connection not: its machine is down, or it is another one."""
    monkeypatch.setattr(openai_engine, "_CONNECT_SECONDS", 0.2)
    with contextlib.ExitStack() as stack, process_groups(Layout()):
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than it keeps waiting
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(BarError, match=r"/v1/models doesn't answer: .*timed out"):
            OpenAIEngine([address], 1, 64).generate([], Sampling(4, frozenset()))


def test_seeds_depend_on_all_of_seed_and_key():
    seeds = {request_seed(Request([], key), seed)
             for seed in (0, 1) for key in ((1, 2, 3), (1, 3, 2), (12, 3), (1, 23))}
    assert len(seeds) == 8 and all(0 <= seed < 2**31 for seed in seeds)
