"""A recipe from import to export on a random OLMo-2 of 1B, killed once; on a CPU a small one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Olmo2Config

from megatron_bar.cli import main
from megatron_bar.stages.context import read_done
from megatron_bar.training.metrics import read_metrics
from tests.gpu.conftest import ON_CPU
from tests.launch.test_real_model import killed_in
from tests.models_hf import talking

# One worker does all: the tests share what is made first.
pytestmark = pytest.mark.xdist_group("recipe")
SIZES = dict(
    vocab_size=100_352,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    max_position_embeddings=4096,
)
SMALL = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
TRAINED = ("math/midtrain", "math/sft", "math/rlvr", "code/sft", "routed")


def _write_model(folder: Path, seed: int, device: torch.device) -> None:
    torch.manual_seed(seed)
    config = Olmo2Config(
        **SMALL if ON_CPU else SIZES,
        rope_theta=500_000,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        eos_token_id=0,
        pad_token_id=1,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    talking(model, folder)


def _recipe(folder: Path, length: int) -> dict[str, Any]:
    """Every kind of stage, a few steps each."""
    step = dict(
        global_batch_size=4,
        micro_batch_size=2,
        lr=1e-4,
        log_every=2,
        dtype="bfloat16",
        sequence_length=length,
    )
    chats = {"toy": "general", "count": 2000}

    def held_out(domain: str) -> list[dict[str, Any]]:
        return [{"toy": domain, "split": "heldout", "count": 8}]

    return {
        "name": "gpu",
        "runs": str(folder / "runs"),
        "anchor": str(folder / "anchor"),
        "pretrained": str(folder / "pretrained"),
        "domains": {
            "math": {
                "midtrain": step
                | {"data": [{"toy": "math", "count": 4000}], "steps": 12, "save_every": 4},
                "sft": step | {"data": [{"toy": "math", "count": 2000}, chats], "steps": 8},
                "rlvr": {
                    "data": [{"toy": "math", "count": 64}],
                    "steps": 2,
                    "prompts_per_step": 8,
                    "samples_per_prompt": 4,
                    "global_batch_size": 16,
                    "micro_batch_size": 4,
                    "prompt_length": 256,
                    "response_length": 16 if ON_CPU else 128,
                    "dtype": "bfloat16",
                    "rollout_batch_size": 32,
                    "drop_equal": False,
                },
                "tasks": held_out("math"),
            },
            "code": {
                "sft": step | {"data": [{"toy": "code", "count": 2000}, chats], "steps": 8},
                "tasks": held_out("code"),
            },
        },
        "route": {"fraction": 0.3, "training": step | {"steps": 6}},
        "evaluate": {
            "general": held_out("general"),
            "max_new_tokens": 32,
            "batch_size": 32,
            "dtype": "bfloat16",
        },
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory, device, row_length) -> Path:
    """The run's folder."""
    folder = tmp_path_factory.mktemp("recipe")
    for seed, name in enumerate(("anchor", "pretrained")):
        _write_model(folder / name, seed, device)
    file = folder / "gpu.yaml"
    file.write_text(yaml.safe_dump(_recipe(folder, row_length)))
    made = folder / "runs" / "gpu"
    killed_in(made / "math" / "midtrain", file)
    assert main(["run", str(file)]) == 0
    assert "goes on after step" in (made / "logs" / "math-midtrain.txt").read_text()
    return made


def test_every_stage_learns_and_keeps_what_it_froze(run):
    for name in TRAINED:
        assert read_done(run / name)["summary"].endswith("frozen parameters bit-identical"), name
        numbers = read_metrics(run / name)
        found = torch.tensor([[m["loss"], m["grad_norm"]] for m in numbers])
        assert found.isfinite().all() and not any(m.get("skipped") for m in numbers), name


def test_each_stage_says_what_computes_it(run):
    for name in TRAINED:
        log = " ".join((run / "logs" / f"{name.replace('/', '-')}.txt").read_text().split())
        assert re.search(rf"{name}: attention .*, products .*, AdamW ", log), name


def test_the_export_answers_in_transformers(run):
    model = AutoModelForCausalLM.from_pretrained(run / "hf" / "model", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.num_experts == 3
    tokens = torch.arange(5, 25)[None]
    assert model.generate(tokens, max_new_tokens=4, do_sample=False).shape[1] > 20
    answers = (run / "evaluate" / "routed" / "answers.jsonl").read_text().splitlines()
    assert len([json.loads(answer) for answer in answers]) == 24


def test_transformers_computes_the_same_from_the_export(run):
    assert main(["verify", str(run / "routed" / "checkpoint"), str(run / "hf" / "model")]) == 0
