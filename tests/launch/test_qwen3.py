"""The main job with another family: a bf16 Qwen3 through every stage, an upgrade, and serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_bar.checkpoints.number_types import stored_types
from megatron_bar.cli import main
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests
from tests.models_hf import TALKING, random_model, talking

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
_STEP = dict(sequence_length=128, global_batch_size=2, micro_batch_size=1, lr=1e-3, log_every=1)


def recipe(folder: Path) -> dict:
    """Every stage, in one process and in two; RLVR rewards what a random model may say."""

    def toy(name: str) -> dict:
        return {"toy": name, "count": 24}

    general = toy("general")
    tasks = [{"toy": "math", "split": "heldout", "count": 2}]
    rlvr = dict(
        data=[{"path": str(folder / "prompts.jsonl"), "verifier": "instructions"}],
        steps=2,
        prompts_per_step=4,
        samples_per_prompt=2,
        global_batch_size=4,
        micro_batch_size=2,
        prompt_length=400,
        response_length=8,
        lr=1e-3,
        backend="native",
    )
    return {
        "name": "qwen3",
        "runs": str(folder / "runs"),
        "anchor": str(folder / "anchor"),
        "pretrained": str(folder / "pretrained"),
        "layout": {"processes": 2, "tensor": 2, "expert": 2, "expert_tensor": 1},
        "domains": {
            "math": {
                "midtrain": _STEP | {"steps": 2, "data": [toy("math")]},
                "sft": _STEP | {"steps": 2, "data": [toy("math"), general]},
                "rlvr": rlvr,
                "tasks": tasks,
            },
            "code": {"sft": _STEP | {"steps": 2, "data": [toy("code"), general]}, "tasks": tasks},
        },
        "route": {"fraction": 0.25, "training": _STEP | {"steps": 2, "layout": {"processes": 1}}},
        "evaluate": {
            "general": [{"toy": "general", "split": "heldout", "count": 2}],
            "max_new_tokens": 4,
            "layout": {"processes": 1},
        },
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    for name, dtype, seed in (("anchor", torch.bfloat16, 0), ("pretrained", torch.float32, 1)):
        talking(random_model("Qwen3, tied", seed, **TALKING).to(dtype), folder / name)
    has_e = {
        "instruction_id_list": ["keywords:letter_frequency"],
        "kwargs": [{"letter": "e", "let_frequency": 1, "let_relation": "at least"}],
    }
    (folder / "prompts.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [{"role": "user", "content": f"Say {number}"}],
                    "answer": has_e,
                }
            )
            + "\n"
            for number in range(8)
        )
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder), sort_keys=False))
    assert main(["run", str(folder / "recipe.yaml")]) == 0
    return folder / "runs" / "qwen3"


def test_every_stage_keeps_what_it_froze_and_the_types_of_the_anchor(run):
    for name in ("math/midtrain", "math/sft", "math/rlvr", "code/sft", "routed"):
        assert read_done(run / name)["summary"].endswith("frozen parameters bit-identical"), name
        assert set(stored_types(run / name / "checkpoint").values()) == {torch.bfloat16}, name
    anchor = {
        read_done(run / name)["anchor_digest"]["after"]
        for name in ("math/rlvr", "code/sft", "routed")
    }
    assert anchor == {read_done(run / "merged")["anchor_digest"]}


def test_transformers_loads_computes_and_generates_the_same(run, capsys):
    assert (
        main(
            ["verify", str(run / "routed" / "checkpoint"), str(run / "hf" / "model"), "--gradients"]
        )
        == 0
    )
    assert "equal within 1e-05" in capsys.readouterr().out
    folder = run / "hf" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert type(model).__name__ == "Qwen3MoeForCausalLM" and model.config.num_experts == 3
    assert model.config.tie_word_embeddings and model.dtype == torch.bfloat16
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "What is 2 + 2?"}],
        return_tensors="pt",
        return_dict=True,
        add_generation_prompt=True,
    )
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > 4


def test_one_expert_is_replaced_and_the_other_stays(run, tmp_path):
    changed = recipe(run.parent.parent)
    del changed["domains"]["math"]
    changed["domains"]["code"]["sft"]["lr"] = 2e-3
    (tmp_path / "code.yaml").write_text(yaml.safe_dump(changed))
    before = group_digests(run / "routed" / "checkpoint")
    assert main(["upgrade", str(run), "--replace", f"code={tmp_path / 'code.yaml'}"]) == 0
    after = group_digests(run / "routed" / "checkpoint")
    assert ModelConfig.load(run / "routed" / "checkpoint").all_expert_names == (
        "anchor",
        "math",
        "code",
    )
    same = {group for group in before if before[group] == after[group]}
    assert {"expert.0", "expert.1"} <= same and "expert.2" not in same
