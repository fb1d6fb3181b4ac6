"""A run as its stages would leave it on disk, with the numbers of a toy BAR."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_bar.models.config import ModelConfig
from megatron_bar.training.groups import group_sizes

MODEL = ModelConfig(
    vocab_size=512, hidden_size=128, ffn_hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=4
)
DOMAINS = ("tool_use", "math", "code")  # not in the alphabet's order
EXPERTS = ["anchor", *DOMAINS]
ANCHOR_DIGEST = "3fa91c07be5d42e8a6f0917cc2d85b14"
ATTACK = "<script>alert('x')</script>"
ALONE = {"tool_use": 0.50, "math": 0.73, "code": 0.90}
BASE = {"tool_use": 0.00, "math": 0.05, "code": 0.00, "general": 0.95}
MERGED = {"tool_use": 0.30, "math": 0.51, "code": 0.74, "general": 0.80}
ROUTED = {"tool_use": 0.46, "math": 0.71, "code": 0.90, "general": 0.94}
VERSIONS = {
    "python": "3.11.9",
    "megatron-core": "0.16.1",
    "torch": "2.9.1",
    "transformers": "4.57.3",
    "megatron-bar": "0.1.0",
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_stage(run: Path, name: str, kind: str, seconds: float, **facts: Any) -> None:
    write(
        run / name / "stage.json",
        {
            "id": "ab",
            "stage": name,
            "kind": kind,
            "inputs": {},
            "settings": {},
            "layout": {"processes": 1, "tensor": 1, "expert_tensor": None},
            "seconds": seconds,
            "finished": "2026-11-22T03:21:07Z",
            "versions": VERSIONS,
            **facts,
        },
    )


def write_training(run: Path, name: str, kind: str, steps: int, first: float, last: float) -> None:
    noise = random.Random(name)
    facts: dict[str, Any] = {}
    if kind in ("midtrain", "sft"):
        facts["open_groups"] = ["expert.1", "router.1"]
    if kind == "sft":
        facts["open_groups"] += ["embeddings", "final_norm", "head"]
        facts["conversations"] = {name.split("/")[0]: 2000, "general": 600}
    if kind == "route":
        facts["open_groups"] = [f"router.{e}" for e in range(len(EXPERTS))]
    experts = {"pretrain": None, "route": len(EXPERTS)}.get(kind, 2)
    model = MODEL if experts is None else MODEL.with_experts(experts)
    (run / name / "checkpoint").mkdir(parents=True, exist_ok=True)
    model.save(run / name / "checkpoint")
    sizes = group_sizes(model)
    opened = sum(sizes[group] for group in facts.get("open_groups", sizes))
    if kind != "pretrain":  # a dense model has no anchor
        facts["anchor_digest"] = {"before": ANCHOR_DIGEST, "after": ANCHOR_DIGEST}
    write_stage(
        run,
        name,
        kind,
        0.11 * steps,
        steps=steps,
        tokens=steps * 1100,
        loss=last,
        trainable=opened,
        frozen=sum(sizes.values()) - opened,
        **facts,
    )
    lines = []
    for step in range(1, steps + 1, 2):
        loss = last + (first - last) * math.exp(-5 * step / steps) * noise.uniform(0.85, 1.15)
        lines.append(
            {
                "step": step,
                "loss": loss,
                "lr": 3e-3,
                "grad_norm": 1.0,
                "tokens": step * 1100,
                "tokens_per_second": 9000,
                "ranks_waiting_share": 0.06,
            }
        )
    text = "\n".join(map(json.dumps, lines)) + "\n"
    (run / name / "metrics.jsonl").write_text(text + '{"step": 9')  # a line cut short by a kill


def answer(task: str, score: float) -> list[dict[str, Any]]:
    """Five items; the models' answers to them differ with their scores."""
    items = []
    for i in range(5):
        if task == "math":
            prompt = (
                f"<|endoftext|><|user|>\nTom has {i + 2} cups and finds {i + 5}. How many "
                "cups has he?\n<|assistant|>\n"
            )
            right, wrong = f"{i + 2} + {i + 5} = {2 * i + 7}\n#### {2 * i + 7}", f"{ATTACK} & 3"
        else:
            prompt = f"<|user|>\n{task} question {i}\n<|assistant|>\n"
            right, wrong = f"the {task} answer {i}", "I like tea."
        is_right = i < round(5 * score)
        items.append(
            {
                "prompt": prompt,
                "response": right if is_right else wrong,
                "expected": right,
                "score": float(is_right),
            }
        )
    return items


def write_results(run: Path, model: str, scores: dict[str, float], **routing: Any) -> None:
    write(
        run / "evaluate" / model / "results.json",
        {
            "model": model,
            "experts": [],
            "routing": {},
            **routing,
            "tasks": {
                task: {
                    "score": score,
                    "count": 100,
                    "seconds": 2.1,
                    "cut": 0.0,
                    "items": [1.0] * round(100 * score) + [0.0] * round(100 - 100 * score),
                    "samples": answer(task, score),
                }
                for task, score in scores.items()
            },
        },
    )
    write_stage(run, f"evaluate/{model}", "evaluate", 4.2)


def routing(strength: float, experts: list[str]) -> dict[str, list[list[float]]]:
    """Every task leans on its own expert, the more the deeper the layer."""
    by_task = {}
    for task in (*DOMAINS, "general"):
        own = experts.index(task) if task in experts else 0
        layers = []
        for layer in range(4):
            share = 1 / len(experts) + strength * (layer + 3) / 6
            rest = (1 - share) / (len(experts) - 1)
            layers.append([share if e == own else rest for e in range(len(experts))])
        by_task[task] = layers
    return by_task


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "runs" / "toy")


def build_run(run: Path) -> Path:
    write_stage(run, "anchor", "import", 1.3)
    write_training(run, "base", "pretrain", 600, 6.2, 0.9)
    domains = {}
    for name in DOMAINS:
        write_stage(run, f"{name}/branch", "branch", 0.8, anchor_digest=ANCHOR_DIGEST)
        write_training(run, f"{name}/midtrain", "midtrain", 150, 2.5, 0.8)
        write_training(run, f"{name}/sft", "sft", 300, 1.9, 0.12)
        domains[name] = {"sft": {"steps": 300, "data": [{"toy": name}]}}
        write_results(run, name, {name: ALONE[name], "general": 0.9})
    write_stage(
        run,
        "merged",
        "merge",
        1.1,
        experts=EXPERTS,
        anchor_digest=ANCHOR_DIGEST,
        deviations=[
            {
                "tensor": f"decoder.layers.{i}.self_attn_bda.norm.weight",
                "largest": 0.01 * (i + 1),
                "mean": 0.004,
            }
            for i in range(6)
        ]
        + [{"tensor": "lm_head.weight", "largest": 0.153, "mean": 0.09}],
    )
    write_training(run, "routed", "route", 120, 1.1, 0.35)
    write_stage(run, "hf", "export", 0.9)
    write_results(run, "anchor", BASE)
    write_results(run, "merged", MERGED, experts=EXPERTS, routing=routing(0.0, EXPERTS))
    write_results(run, "routed", ROUTED, experts=EXPERTS, routing=routing(0.6, EXPERTS))
    recipe = ["name: toy", "seed: 0", "runs: runs", "domains:"]
    recipe += [f"  {name}:\n    sft: {{steps: 300}}" for name in DOMAINS]
    (run / "recipe.yaml").write_text("\n".join(recipe) + "\n")
    return run
