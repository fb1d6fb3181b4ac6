"""Rollouts by a server that holds the export, against generation in the training processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.generation import openai_api
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.openai_api import OpenAIApi, ServerFault
from megatron_bar.generation.openai_engine import Asking, OpenAIEngine, request_seed
from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.metrics import read_metrics
from tests.generation.openai_server import CompletionServer, serving
from tests.layouts import EXPERTS
from tests.rlvr import ranks

PROMPTS = [[5, 17, 200], [9], [3, 3, 3, 250, 7, 8]]


def _engine(servers, answer_seconds=60.0, seeds=True, renew=None) -> OpenAIEngine:
    """Asks servers of a model of 64 positions; they come back as they are."""
    return OpenAIEngine(servers, Asking(2, 64, seeds, answer_seconds), renew or (lambda: servers))


def _ask(layout: Layout, server: str, sampling: Sampling, out: Path) -> None:
    with process_groups(layout):
        requests = [Request(prompt, (4, i)) for i, prompt in enumerate(PROMPTS)]
        responses = _engine([server]).generate(requests, sampling)
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
        ranks.score_responses,
        model / "checkpoint",
        PROMPTS,
        answers[0],
        temperature or 1.0,
        tmp_path / "own",
    ).wait()
    for found, own in zip(answers[0], json.loads((tmp_path / "own" / "logprobs.json").read_text())):
        assert found["logprobs"] == pytest.approx(own, abs=1e-4)
    if temperature == 0:
        own = ranks.generated(
            model / "checkpoint", Layout(), PROMPTS, sampling, 3, tmp_path / "greedy"
        )
        assert [r["tokens"] for r in answers[0]] == [r["tokens"] for r in own]


def _stage(
    model: Path,
    served: CompletionServer,
    folder: Path,
    layout: Layout,
    *others: str,
    lr=1e-2,
    **more: Any,
) -> Path:
    """A stage whose rollouts come from a server of the folder `served`, and from `others`."""
    with serving(served) as server:
        settings = Rlvr(
            **ranks.SETTINGS
            | dict(
                rollout_servers=[*others, server], rollout_folder=str(served.folder), lr=lr, **more
            )
        )
        folder.mkdir()
        processes.start(
            ranks.run_reinforce,
            model / "checkpoint",
            layout,
            settings,
            folder,
            processes=layout.processes,
            timeout_seconds=200,
        ).wait()
    return folder


@pytest.mark.distributed
def test_a_stage_whose_rollouts_are_served_trains_on_its_own_weights(model, tmp_path):
    """Were the weights not refreshed, log-probabilities of rollout and training would part.

    A second server isn't there, which costs no step.
    """
    export_hf(model / "checkpoint", tmp_path / "served")
    served = CompletionServer(tmp_path / "served")
    metrics = read_metrics(
        _stage(model, served, tmp_path / "run", EXPERTS["dp2"], "http://127.0.0.1:9")
    )
    assert served.reloads == len(metrics) == ranks.SETTINGS["steps"]
    for line in metrics:
        assert line["rollout_logprob_gap_max"] < 1e-4 and line["refresh_logprob_gap"] < 1e-4
        assert line["seconds_export"] > 0 and line["seconds_refresh"] > 0
        assert 0 < line["seconds_servers"] < line["seconds_rollout"]
        assert line["servers_waiting_share"] == pytest.approx(
            1 - line["seconds_servers"] / line["seconds_step"]
        )
    assert metrics[-1]["kl"] > 1e-3  # the weights did move
    assert len({json.dumps(asked["seed"]) for asked in served.requests}) == len(served.requests)


@pytest.mark.distributed
def test_servers_sleep_while_the_policy_learns(model, tmp_path):
    """New weights come when there is memory for them, questions when there is for their cache."""
    export_hf(model / "checkpoint", tmp_path / "served")
    served = CompletionServer(tmp_path / "served")
    _stage(model, served, tmp_path / "run", Layout(), rollout_sleep=True, steps=2)
    answered = ["/collective_rpc", "/reset_prefix_cache", "/v1/completions", "/sleep?level=2"]
    woken = ["/wake_up?tags=weights", *answered[:2], "/wake_up?tags=kv_cache", *answered[2:]]
    assert served.calls == [*answered, *woken]


class _KeepsItsWeights(CompletionServer):
    """Says 200 to `reload_weights`, and does nothing after the first."""

    def _load(self) -> None:
        if not hasattr(self, "model"):
            super()._load()


class _RuinsItsWeights(CompletionServer):
    """Loads other weights than those that are there."""

    def _load(self) -> None:
        super()._load()
        torch.nn.init.normal_(self.model.get_input_embeddings().weight)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "kind, steps, message",
    [
        (_KeepsItsWeights, 1, "it has the weights of the step before"),
        (
            _RuinsItsWeights,
            0,
            "from the trainer's in the mean, more than max_rollout_logprob_gap 0.1",
        ),
    ],
)
def test_no_answer_counts_that_other_weights_gave(kind, steps, message, model, tmp_path):
    export_hf(model / "checkpoint", tmp_path / "served")
    served = kind(tmp_path / "served")
    with pytest.raises(JobFailed, match=message):
        _stage(model, served, tmp_path / "run", Layout(), lr=1e-4)
    assert served.reloads == steps + 2  # once more than it had to
    assert len(read_metrics(tmp_path / "run")) == steps
    assert len(served.requests) == steps * 16


@pytest.mark.distributed
def test_rollouts_that_are_too_far_from_the_trainer_stop_the_stage(model, tmp_path):
    """Whatever generates: here the trainer itself, with a limit below rounding."""
    settings = Rlvr(**ranks.SETTINGS | dict(max_rollout_logprob_gap=1e-12))
    with pytest.raises(JobFailed, match=r"in step 1 .* more than max_rollout_logprob_gap 1e-12"):
        processes.start(
            ranks.run_reinforce,
            model / "checkpoint",
            Layout(),
            settings,
            tmp_path,
            timeout_seconds=200,
        ).wait()


class _Answers:
    """Gives one answer to everything; `asked` has what it was asked."""

    def __init__(self, completion, seconds: float = 0.0) -> None:
        self.completion, self.seconds = completion, seconds
        self.asked = []

    def get(self, path):
        return {"data": [{"id": "policy"}]}

    def post(self, path, content):
        self.asked.append(content)
        time.sleep(self.seconds)
        if isinstance(self.completion, Exception):
            raise self.completion
        return self.completion


def _choice(tokens, logprobs) -> dict:
    return {
        "choices": [
            {
                "token_ids": tokens,
                "logprobs": {"token_logprobs": logprobs},
                "finish_reason": "abort",
            }
        ]
    }


RIGHT = _choice([5, 0], [-1.0, -2.0])
SAMPLING = Sampling(4, frozenset({0}))
REQUESTS = [Request([1, 2], (number,)) for number in range(6)]


@pytest.mark.parametrize(
    "completion, message",
    [
        ({"choices": [{"text": "x"}]}, "lacks token ids or their log-probabilities"),
        (b"out of memory", "answers 500: out of memory"),
        ("<html>", "/v1/completions doesn't answer: Expecting value"),
        ("", "isn't of the form that was asked for"),
        ([], "isn't of the form that was asked for"),
        ({"choices": []}, "isn't of the form that was asked for"),
        ({"choices": ["x"]}, "isn't of the form that was asked for"),
        (_choice(["x", 0], [-1.0, -1.0]), "isn't of the form that was asked for"),
        (_choice([5, 0], [-1.0, None]), "isn't of the form that was asked for"),
        (_choice([5, 0], [-1.0, float("nan")]), "the log-probability nan"),
        (_choice([5, 0], [-1.0, 0.5]), "the log-probability 0.5"),
        (_choice([5, 6], [-1.0, -1.0]), r"2 tokens and doesn't end there, of 4 .*\(abort\)"),
        (_choice([5] * 5, [-1.0] * 5), "5 tokens and doesn't end there"),
        (ConnectionAbortedError(), "doesn't answer: .*disconnected"),
    ],
)
def test_what_a_server_does_wrong_is_reported_when_it_does_it_again(completion, message):
    renewed = []
    with serving(_Answers(completion)) as server, process_groups(Layout()):
        engine = _engine([server], renew=lambda: renewed.append(1) or [server])
        with pytest.raises(BarError, match=message):
            engine.generate([Request([1, 2])], SAMPLING)
    assert len(renewed) == 1


def test_a_server_that_is_not_there_is_reported():
    with process_groups(Layout()), pytest.raises(BarError, match=r"/v1/models doesn't answer"):
        _engine(["http://127.0.0.1:9"]).generate(REQUESTS, SAMPLING)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "bad", [_Answers(ConnectionAbortedError()), _Answers(RIGHT, seconds=2.0)], ids=["dead", "slow"]
)
def test_what_one_server_fails_to_answer_others_are_asked(bad):
    good, renewed = _Answers(RIGHT), []
    with serving(bad) as ill, serving(good) as well, process_groups(Layout()):
        engine = _engine([ill, well], 0.5, renew=lambda: renewed.append(1))
        answers = engine.generate(REQUESTS, SAMPLING)
    assert [answer.tokens for answer in answers] == [[5, 0]] * len(REQUESTS)
    assert len(good.asked) == len(REQUESTS) and not renewed


@pytest.mark.slow
def test_what_is_missing_is_asked_once_more_after_the_servers_are_renewed():
    class DiesAtTheThird(_Answers):
        def post(self, path, content):
            if len(self.asked) == 2:
                raise ConnectionAbortedError
            return super().post(path, content)

    dying, fresh, done = DiesAtTheThird(RIGHT), _Answers(RIGHT), []
    with serving(dying) as first, serving(fresh) as second, process_groups(Layout()):
        engine = _engine([first], renew=lambda: [second])
        answers = engine.generate(REQUESTS, SAMPLING, done.append)
    assert len(answers) == sum(done) == len(REQUESTS)
    assert len(fresh.asked) == len(REQUESTS) - len(dying.asked) == len(REQUESTS) - 2


def test_a_prompt_beyond_the_models_positions_is_never_asked():
    answers = _Answers(RIGHT)
    with serving(answers) as server, process_groups(Layout()):
        with pytest.raises(BarError, match="64 tokens, and the model's 64 positions leave no room"):
            _engine([server]).generate([*REQUESTS, Request([1] * 64)], SAMPLING)
        _engine([server]).generate([Request([1] * 62)], SAMPLING)
    assert [asked["max_tokens"] for asked in answers.asked] == [2]


def test_from_a_thread_servers_are_asked_once():
    dead, answers, renewed = _Answers(ConnectionAbortedError()), _Answers(RIGHT), []
    with contextlib.ExitStack() as stack, process_groups(Layout()):
        ill, well = (stack.enter_context(serving(which)) for which in (dead, answers))
        thread = stack.enter_context(ThreadPoolExecutor(1))
        both, alone = (
            _engine(servers, renew=lambda: renewed.append(1)) for servers in ([ill, well], [ill])
        )
        found = thread.submit(both.ask, REQUESTS, SAMPLING).result()
        with pytest.raises(BarError, match="doesn't answer"):
            thread.submit(alone.ask, REQUESTS, SAMPLING).result()
        with pytest.raises(BarError, match="leave no room"):
            both.ask([Request([1] * 64)], SAMPLING)
    assert [answer.tokens for answer in found] == [[5, 0]] * len(REQUESTS)
    assert len(answers.asked) == len(REQUESTS) and not renewed


@pytest.mark.parametrize("seeds", [True, False])
def test_requests_bring_seeds_where_servers_take_them(seeds):
    answers = _Answers(RIGHT)
    with serving(answers) as server, process_groups(Layout()):
        _engine([server], seeds=seeds).generate(REQUESTS, SAMPLING)
    assert all(("seed" in asked) == seeds for asked in answers.asked)


@pytest.mark.slow
def test_connections_are_used_again():
    answers = _Answers(RIGHT)
    answers.connections = []
    with serving(answers) as server, process_groups(Layout()):
        requests = [Request([1, 2], (number,)) for number in range(20)]
        _engine([server]).generate(requests, SAMPLING)
    assert len(answers.connections) <= 2


@pytest.mark.timeout(60)
def test_a_server_that_takes_no_connection_is_given_up_soon(monkeypatch):
    """An answer may take an hour, a connection not: its machine is down, or it is another one."""
    monkeypatch.setattr(openai_api, "_CONNECT_SECONDS", 0.2)
    with contextlib.ExitStack() as stack, process_groups(Layout()):
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than it keeps waiting
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(BarError, match=r"/v1/models doesn't answer: .*timed out"):
            _engine([address]).generate(REQUESTS[:1], SAMPLING)


@pytest.mark.timeout(60)
def test_a_server_that_dies_while_it_reads_weights_is_given_up_soon(monkeypatch):
    """vLLM never answers that request, as its end waits for it."""
    monkeypatch.setattr(openai_api, "_WATCH_SECONDS", 0.05)
    ended = threading.Event()

    class Dying:
        def get(self, path):
            return b"the engine is dead"

        def post(self, path, content):
            ended.wait()

    with serving(Dying()) as server:
        with pytest.raises(ServerFault, match="died over /collective_rpc"):
            OpenAIApi(server, answer_seconds=3600.0).call_workers("reload_weights")
        ended.set()


def test_seeds_depend_on_all_of_seed_and_key():
    seeds = {
        request_seed(Request([], key), seed)
        for seed in (0, 1)
        for key in ((1, 2, 3), (1, 3, 2), (12, 3), (1, 23))
    }
    assert len(seeds) == 8 and all(0 <= seed < 2**31 for seed in seeds)
