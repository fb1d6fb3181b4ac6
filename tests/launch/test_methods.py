"""Every method from end to end, as the systems of one recipe: what each made, what they shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from megatron_bar.analysis.scores import load_results, score_lines
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import DENSE_OF_EXPERT, EXPERT_FFN_NAMES, Slot
from megatron_bar.checkpoints.token_counts import read_token_counts
from megatron_bar.cli import main
from megatron_bar.methods import METHODS, last_model
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

_TRAINING = dict(sequence_length=96, global_batch_size=4, micro_batch_size=4, lr=3e-3)
SYSTEMS = {
    "bar": {},
    "flexolmo": {"method": "flexolmo", "merge": {"shared": "row_wise"}},
    "btx": {"method": "btx"},
    "btx-first": {"method": "btx", "merge": {"shared": "math"}},
    "dense_merge": {"method": "dense_merge"},
    "continued": {"method": "continued"},
    "continued-sequence": {"method": "continued", "order": "sequence"},
    "retrain": {"method": "retrain"},
    "retrain_midtrain": {"method": "retrain_midtrain"},
}


def _domain(name: str, steps: int) -> dict:
    return {
        "sft": dict(
            **_TRAINING,
            steps=steps,
            data=[{"toy": name, "count": 40}, {"toy": "general", "count": 20}],
        ),
        "tasks": [{"toy": name, "split": "heldout", "count": 2}],
    }


def _recipe(runs: Path) -> dict:
    math = _domain("math", 3)
    math["midtrain"] = dict(**_TRAINING, steps=2, data=[{"toy": "math", "count": 60}])
    return {
        "name": "mini",
        "runs": str(runs),
        "systems": SYSTEMS,
        "pretrain": {
            "vocab_size": 600,
            "chat": [{"toy": "general", "count": 100}],
            "training": dict(
                **_TRAINING, steps=4, data=[{"toy": "general", "count": 60, "name": "prose"}]
            ),
        },
        "domains": {"math": math, "safety": _domain("safety", 2)},
        "route": {"fraction": 0.5, "training": dict(**_TRAINING, steps=2)},
        "evaluate": {
            "general": [{"toy": "general", "split": "heldout", "count": 2}],
            "max_new_tokens": 4,
        },
    }


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("systems")
    (folder / "mini.yaml").write_text(yaml.safe_dump(_recipe(folder / "runs")))
    assert main(["run", str(folder / "mini.yaml")]) == 0
    return folder / "runs" / "mini"


def ids(run: Path) -> dict[str, str]:
    return {
        str(path.parent.relative_to(run)): json.loads(path.read_text())["id"]
        for path in run.rglob("stage.json")
    }


def moved(run: Path, start: str, end: str) -> set[str]:
    before, after = (group_digests(run / stage / "checkpoint") for stage in (start, end))
    return {group for group in before if before[group] != after[group]}


EVERYTHING = {"embeddings", "attention", "block_norms", "final_norm", "head", "ffn"}


def test_what_is_the_same_was_made_once(mini):
    made = {system: ids(mini / system) for system in SYSTEMS}
    for stage in ("base", "anchor", "pretrained", "evaluate/anchor"):
        assert len({found[stage] for found in made.values()}) == 1
    dense = ("math/midtrain", "math/sft", "safety/sft", "evaluate/math")
    for stage in dense:
        assert made["btx"][stage] == made["btx-first"][stage] == made["dense_merge"][stage]
    assert made["bar"]["math/midtrain"] == made["flexolmo"]["math/midtrain"]
    assert made["bar"]["math/sft"] != made["flexolmo"]["math/sft"]
    assert made["btx"]["merged"] != made["btx-first"]["merged"]
    store = {path.stat().st_ino for path in mini.glob("*/data/chats/math-*/tokens.bin")}
    assert len(store) == 1


def test_a_second_run_does_nothing(mini):
    before = {system: ids(mini / system) for system in SYSTEMS}
    assert main(["run", str(mini.parents[1] / "mini.yaml")]) == 0
    assert before == {system: ids(mini / system) for system in SYSTEMS}


@pytest.mark.parametrize(
    "system, start, end",
    [
        ("btx", "anchor", "math/midtrain"),
        ("btx", "math/midtrain", "math/sft"),
        ("dense_merge", "anchor", "safety/sft"),
        ("continued", "anchor", "all/sft"),
        ("continued-sequence", "math/sft", "safety/sft"),
        ("retrain", "pretrained", "all/sft"),
        ("retrain_midtrain", "pretrained", "all/midtrain"),
    ],
)
def test_dense_models_train_every_parameter(mini, system, start, end):
    assert moved(mini / system, start, end) == EVERYTHING


def test_a_branch_tells_what_it_has_read(mini):
    """Over mid-training and SFT; what the row-wise merge of another system weighs rows by."""
    before, after = (
        read_token_counts(mini / "bar" / "math" / kind / "checkpoint")
        for kind in ("midtrain", "sft")
    )
    report = read_done(mini / "bar" / "math" / "sft")["packing"]
    assert len(after) == ModelConfig.load(mini / "bar" / "math" / "sft" / "checkpoint").vocab_size
    assert before.sum() > 0 and (after - before).sum() == report["tokens"]
    assert read_token_counts(mini / "bar" / "math" / "branch" / "checkpoint") is None
    summary = read_done(mini / "flexolmo" / "merged")["summary"]
    assert "lie at most 0.0% from what row_wise makes of them" in summary


def test_flexolmo_moves_nothing_shared(mini):
    run = mini / "flexolmo"
    assert moved(run, "math/branch", "math/sft") == {"expert.1", "router.1"}
    anchor, merged = (group_digests(run / s / "checkpoint") for s in ("anchor", "merged"))
    assert all(anchor[group] == merged[group] for group in EVERYTHING - {"ffn"})


@pytest.mark.parametrize("system", ["btx", "btx-first"])
def test_btx_stacks_what_the_domains_learned_and_trains_the_router(mini, system):
    run = mini / system
    experts = ("anchor", "math/sft", "safety/sft")
    model = ModelConfig.load(run / "routed" / "checkpoint")
    assert model.num_experts == model.experts_per_token == 3
    stacked = CheckpointReader(run / "routed" / "checkpoint")
    for expert, stage in enumerate(experts):
        dense = ModelConfig.load(run / stage / "checkpoint")
        reader = CheckpointReader(run / stage / "checkpoint")
        for name in EXPERT_FFN_NAMES:
            assert torch.equal(
                stacked.read(Slot(model, name, (1, expert))),
                reader.read(Slot(dense, DENSE_OF_EXPERT[name], (1,))),
            )
    assert moved(run, "merged", "routed") == {"router.0", "router.1", "router.2"}
    first = group_digests(run / "math/sft" / "checkpoint")
    merged = group_digests(run / "merged" / "checkpoint")
    assert (first["attention"] == merged["attention"]) is (system == "btx-first")


def test_joined_stages_read_the_rows_of_all_domains(mini):
    done = read_done(mini / "continued" / "all/sft")
    assert done["steps"] == 3 + 2 and set(done["parts"]) == {"math", "safety"}
    assert done["parts"]["math"]["conversations"] == {"math": 40, "general": 20}
    assert read_done(mini / "retrain_midtrain" / "all/midtrain")["steps"] == 2


@pytest.mark.parametrize(
    "system, experts",
    [("btx", 3), ("dense_merge", None), ("continued-sequence", None), ("retrain", None)],
)
def test_exports_load_in_transformers(mini, system, experts):
    model = AutoModelForCausalLM.from_pretrained(mini / system / "hf" / "model")
    assert getattr(model.config, "num_experts", None) == experts
    card = (mini / system / "hf" / "model" / "README.md").read_text()
    results = load_results(mini / system)
    assert "\n".join(score_lines(results, last_model(mini / system))) in card
    assert METHODS[system.partition("-")[0]].MADE in card and "Branch-Adapt-Route" not in card
    assert (mini / system / "report.html").stat().st_size > 10_000


def test_compare(mini, tmp_path, capsys):
    assert main(["compare", str(mini), "--json", str(tmp_path / "systems.json")]) == 0
    shown = capsys.readouterr().out
    assert "continued-sequence" in shown and "process" in shown
    page = (mini / "report.html").read_text(encoding="utf-8")  # of the command that ran them
    assert all(f"<th>{system}</th>" in page for system in SYSTEMS)
    systems = {s["label"]: s for s in json.loads((tmp_path / "systems.json").read_text())}
    assert set(systems) == set(SYSTEMS)
    tokens = {label: system["tokens"]["mean"] for label, system in systems.items()}
    row = 4 * 96
    assert tokens["bar"] == tokens["btx"] == (2 + 3 + 2 + 2) * row
    assert tokens["dense_merge"] == tokens["retrain_midtrain"] == (2 + 3 + 2) * row
    assert tokens["continued"] == tokens["continued-sequence"] == tokens["retrain"] == 5 * row
    assert set(systems["btx"]["branches"]) == {"math", "safety"}
    assert [spent["kind"] for spent in systems["btx"]["spent"]] == ["midtrain", "sft", "route"]


def test_a_reused_run_is_left_as_it_was(mini, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (mini / "bar").rglob("*")}
    recipe = _recipe(tmp_path) | {"systems": {}, "name": "other", "reuse": [str(mini / "bar")]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(tmp_path / "other.yaml"), "domains.safety.sft.steps=1"]) == 0
    here, there = ids(tmp_path / "other"), ids(mini / "bar")
    assert {name for name in here if here[name] != there[name]} == {
        "safety/sft",
        "merged",
        "routed",
        "hf",
        "evaluate/safety",
        "evaluate/merged",
        "evaluate/routed",
        "report",
    }
    assert before == {path: path.stat().st_mtime_ns for path in (mini / "bar").rglob("*")}
