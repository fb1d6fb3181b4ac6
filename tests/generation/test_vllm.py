"""vLLM itself: its answers are the trainer's, and RLVR trains with it, through its death too.

It brings another torch and transformers, so this runs where MEGATRON_BAR_VLLM_PYTHON names the
Python of an environment that has it: `make test-vllm` makes one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.openai_engine import Asking, OpenAIEngine
from megatron_bar.generation.probe import distance
from megatron_bar.generation.served_policy import LOG_FILE
from megatron_bar.generation.vllm_process import VllmProcess
from megatron_bar.launch import processes
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.metrics import read_metrics
from tests.models_hf import TALKING, random_experts, talking
from tests.rlvr import ranks

PYTHON = os.environ.get("MEGATRON_BAR_VLLM_PYTHON")
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="MEGATRON_BAR_VLLM_PYTHON names no Python with vLLM"),
    pytest.mark.timeout(900),
]

OPTIONS = ["--enforce-eager"]
# Heads of a size that vLLM's attention on a CPU has, the toy's.
SIZES = TALKING | dict(hidden_size=128, intermediate_size=256, num_attention_heads=4)
PROMPTS = [[(7 * i + 3 * j * j) % 390 + 5 for j in range(3 + 5 * i)] for i in range(6)]
GREEDY = Sampling(20, frozenset({7}))


@pytest.fixture(scope="module", autouse=True)
def small_cache():
    """A CPU's key-value cache takes what it gets, whatever the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small mixture with a tokenizer, in transformers' format (`hf`) and in ours."""
    folder = tmp_path_factory.mktemp("model")
    talking(random_experts(2, **SIZES), folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def other(model) -> Path:
    """The same model with other weights, all of them."""
    folder = model / "other"
    talking(random_experts(2, seed=1, **SIZES), folder)
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    process = VllmProcess(
        PYTHON,
        ["--dtype", "float32", "--max-model-len", "64", *OPTIONS],
        model / "hf",
        tmp_path_factory.mktemp("log") / LOG_FILE,
        "127.0.0.1",
        120.0,
    )
    process.start()
    yield process
    process.stop()


def _of_transformers(folder: Path) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = [model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in PROMPTS]
    return [
        said.gather(1, torch.tensor(row[1:])[:, None])[:, 0].tolist()
        for row, said in zip(PROMPTS, logprobs)
    ]


def _gap(server: VllmProcess, folder: Path) -> float:
    """How far the server is from the weights in `folder`."""
    return distance([server.api.logprobs(row) for row in PROMPTS], _of_transformers(folder))


def test_greedy_answers_and_their_log_probabilities_are_the_trainers(model, server, tmp_path):
    with process_groups(Layout()):
        asking = Asking(4, 64, seeds=False, answer_seconds=120.0)
        answers = OpenAIEngine([server.api.address], asking, lambda: [server.api.address]).generate(
            [Request(prompt) for prompt in PROMPTS], GREEDY
        )
    own = ranks.generated(model / "checkpoint", Layout(), PROMPTS, GREEDY, 8, tmp_path / "own")
    assert [answer.tokens for answer in answers] == [answer["tokens"] for answer in own]
    for answer, ours in zip(answers, own):
        assert answer.logprobs == pytest.approx(ours["logprobs"], abs=1e-4)


def test_new_weights_are_taken_whole_and_a_ruined_model_is_noticed(model, other, server):
    assert _gap(server, model / "hf") < 1e-4
    assert _gap(server, other) > 1e-3
    started = time.monotonic()
    server.api.call_workers("take_weights", str(other))
    seconds = time.monotonic() - started
    assert _gap(server, other) < 1e-4
    server.api.call_workers("take_weights", str(model / "hf"))
    gap = _gap(server, model / "hf")
    assert gap < 1e-4
    # Why it isn't vLLM's own way: once this fails, our worker has nothing to do any more.
    server.api.call_workers("reload_weights")
    ruined = _gap(server, model / "hf")
    print(
        f"refresh {seconds:.2f} s; log-probabilities {gap:.1e} apart, {ruined:.2g} after "
        "reload_weights"
    )
    assert ruined > 1e-3
    server.api.call_workers("take_weights", str(model / "hf"))
    assert _gap(server, model / "hf") < 1e-4


def test_a_stage_trains_with_it_and_outlives_its_death(model, tmp_path):
    settings = Rlvr(
        **ranks.SETTINGS
        | dict(
            rollout_python=PYTHON,
            rollout_options=OPTIONS,
            lr=1e-2,
            rollout_batch_size=16,
            prompt_length=16,
            response_length=16,
            steps=5,
        )
    )
    killed = threading.Event()

    def kill_its_engine() -> None:
        while not (lines := read_metrics(tmp_path)) or len(lines) < 2:
            time.sleep(0.1)
        engine = re.search(r"EngineCore pid=(\d+)", (tmp_path / LOG_FILE).read_text())
        os.kill(int(engine[1]), signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill_its_engine, daemon=True).start()
    processes.start(
        ranks.run_reinforce, model / "checkpoint", Layout(), settings, tmp_path, timeout_seconds=800
    ).wait()
    metrics = read_metrics(tmp_path)
    print(
        json.dumps(
            [
                {
                    name: line[name]
                    for name in (
                        "rollout_logprob_gap",
                        "refresh_logprob_gap",
                        "seconds_export",
                        "seconds_refresh",
                        "seconds_rollout",
                    )
                }
                for line in metrics
            ],
            indent=1,
        )
    )
    assert killed.is_set() and len(metrics) == settings.steps
    for line in metrics:
        assert line["rollout_logprob_gap_max"] < 1e-3 and line["refresh_logprob_gap"] < 1e-4
    assert metrics[-1]["kl"] > 1e-3  # the weights did move
    assert not (tmp_path / "served").exists()
