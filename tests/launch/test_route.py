"""Routing through the command: its options, its data, and what is told about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import HEAD_NAME, ROUTER_NAME, slots
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.cli import main
from megatron_bar.data.chat import chat_template
from megatron_bar.data.encoding import encode_conversations
from megatron_bar.data.sources import Conversation
from megatron_bar.data.store import StoredDocuments
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests
from tests.launch.answers import same_answers_as_transformers

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def again(run: Path, *overrides: str) -> int:
    return main(["run", str(run / "recipe.yaml"), f"runs={run.parent}", *overrides])


def rows_LEH(checkpoint: Path) -> torch.Tensor:
    reader = CheckpointReader(checkpoint)
    return torch.stack(
        [
            reader.read(slot)
            for slot in slots(ModelConfig.load(checkpoint))
            if slot.name is ROUTER_NAME
        ]
    )


def test_fewer_active_experts_that_sum_to_one(run):
    """Trained, evaluated and exported alike; transformers' class says what is right."""
    assert (
        again(
            run,
            "route.experts_per_token=2",
            "route.renormalize=true",
            "route.load_balancing_loss=0.01",
            "route.training.router_z_loss=0.01",
            "route.training.layout={processes: 2}",
            "evaluate.opt_out=[math]",
        )
        == 0
    )
    config = json.loads((run / "hf" / "model" / "config.json").read_text())
    assert (config["num_experts_per_tok"], config["norm_topk_prob"]) == (2, True)
    assert same_answers_as_transformers(run, max_new_tokens=8) == 12
    routed = json.loads((run / "evaluate" / "routed" / "routing.json").read_text())
    without = json.loads((run / "evaluate" / "without-math" / "routing.json").read_text())
    for found, least in ((routed, 0.01), (without, 0.0)):
        for task in found["tasks"].values():
            layers_LE = np.array(task["layers"])
            np.testing.assert_allclose(layers_LE.sum(1), 1.0, rtol=1e-6)
            assert (layers_LE[:, 1] > 0).any() == (least > 0)


@pytest.mark.parametrize(
    "start, layouts",
    [
        ("random", ["{processes: 2}"]),
        (
            "centroids",
            [
                "{processes: 1}",
                "{processes: 4, tensor: 2, pipeline: 2}",
                "{processes: 2, tensor: 1, pipeline: 1, context: 2}",
            ],
        ),
    ],
)
def test_where_the_rows_start(start, layouts, run):
    """The first step has a learning rate of next to nothing, so the rows are where they started."""
    stacked_LEH = rows_LEH(run / "merged" / "checkpoint")
    found = []
    for layout in layouts:
        assert (
            again(
                run,
                f"route.start={start}",
                f"route.training.layout={layout}",
                "route.training.steps=1",
                "route.training.lr=1e-12",
                "export=false",
            )
            == 0
        )
        found.append(rows_LEH(run / "routed" / "checkpoint"))
        (run / "routed" / "stage.json").unlink()
    for rows in found[1:]:
        torch.testing.assert_close(rows, found[0], rtol=1e-4, atol=1e-6)
    cosine_LE = torch.cosine_similarity(found[0], stacked_LEH, dim=-1)
    assert cosine_LE.abs().max() < 0.7
    if start == "centroids":
        lengths_LE = found[0].norm(dim=-1)
        expected_L1 = stacked_LEH.norm(dim=-1).mean(1, keepdim=True)
        torch.testing.assert_close(lengths_LE, expected_L1.expand_as(lengths_LE))


def test_the_sample_is_stratified_and_written_down(run):
    """A quarter of each source, general data once; the text of each item gives its tokens."""
    lines = [json.loads(line) for line in (run / "routed" / "sample.jsonl").open()]
    assert Counter(line["source"] for line in lines) == {"math": 20, "tool_use": 20, "general": 10}
    folders = (
        json.loads((run / "routed" / "data.json").read_text())
        if (run / "routed" / "data.json").is_file()
        else None
    )
    if folders is None:
        folders = {
            path.name.rsplit("-", 1)[0]: str(path)
            for path in (run / "data" / "chats").iterdir()
            if path.is_dir()
        }
    tokenizer = load_tokenizer(run / "merged" / "checkpoint")
    template = chat_template(None, tokenizer)
    for line in lines[::7]:
        (example,) = encode_conversations(
            tokenizer, [Conversation(line["messages"], line["source"], {})], template
        )
        stored = StoredDocuments(run / "data" / "chats" / Path(folders[line["source"]]).name)
        assert np.array_equal(stored.get(line["document"]).ids, example.ids)


def test_what_the_stage_and_its_evaluation_tell(run):
    done = read_done(run / "routed")
    assert done["open_groups"] == ["router.0", "router.1", "router.2"]
    before, after = (rows_LEH(run / name / "checkpoint") for name in ("merged", "routed"))
    expected = (after - before).norm(dim=-1) / before.norm(dim=-1)
    assert np.allclose(done["router_drift"]["relative"], expected, rtol=1e-4)
    routing = json.loads((run / "evaluate" / "routed" / "routing.json").read_text())
    for task in routing["tasks"].values():
        for parts in (task["kinds"], task["speakers"]):
            assert sum(part["tokens"] for part in parts.values()) == task["tokens"]
            pooled = sum(part["tokens"] * np.array(part["layers"]) for part in parts.values())
            np.testing.assert_allclose(pooled / task["tokens"], task["layers"], rtol=1e-6)
        assert {"template", "user", "assistant"} <= set(task["speakers"])
        example = task["examples"][0]
        assert np.array(example["shares"]).shape == (len(example["texts"]), 4, 3)
    page = (run / "routing.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    assert 'title="' in page and "Drift from the stacked start" in page


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["route.experts_per_token=4"], "route.experts_per_token 4 is not from 1 to 3"),
        (["route.experts_per_token=1", "route.renormalize=true"], "nothing to learn from"),
        (
            ["route.load_balancing_loss=0.1"],
            "load_balancing_loss does nothing while every token goes to all 3",
        ),
        (["route.start=grit"], "route.start 'grit' is not stacked, random or centroids"),
        (["evaluate.opt_out=[law]"], "evaluate.opt_out names 'law', which is no expert"),
        (["domains.math.checkpoint=x"], "domains.math has a checkpoint, so leave out sft"),
    ],
)
def test_bad_options_are_refused_before_anything_is_done(overrides, message, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert again(run, *overrides) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_published_settings_are_the_defaults(run):
    text = (run / "recipe.yaml").read_text()
    start = text.index("route:")
    end = text.index("\nexport:")
    (run / "recipe.yaml").write_text(text[:start] + text[end + 1 :])
    routed = next(s for s in stage_graph(load_recipe(run / "recipe.yaml")) if s.name == "routed")
    training = routed.training
    assert routed.fraction == 0.05
    assert {
        key: getattr(training, key)
        for key in (
            "epochs",
            "sequence_length",
            "global_batch_size",
            "lr",
            "schedule",
            "warmup_ratio",
            "min_lr_ratio",
            "weight_decay",
            "router_z_loss",
            "trainable",
        )
    } == dict(
        epochs=2.0,
        sequence_length=2048,
        global_batch_size=640,
        lr=1e-4,
        schedule="linear",
        warmup_ratio=0.03,
        min_lr_ratio=0.0,
        weight_decay=0.0,
        router_z_loss=1e-3,
        trainable=["router.*"],
    )


def test_a_joint_repair_opens_what_it_names(run):
    """The rest, experts above all, is proven to be what it was; the rate is a share of theirs."""
    opened = "[router.*,embeddings,head,final_norm]"
    scales = "{embeddings: 0.01, head: 0.01, final_norm: 0.01}"
    assert (
        again(
            run,
            f"route.training.trainable={opened}",
            f"route.training.lr_scale={scales}",
            "route.training.steps=1",
            "route.training.lr=0.01",
            "route.training.schedule=constant",
            "route.training.warmup_ratio=0",
            "export=false",
        )
        == 0
    )
    done = read_done(run / "routed")
    assert set(done["open_groups"]) == {
        "embeddings",
        "head",
        "final_norm",
        *(f"router.{e}" for e in range(len(rows_LEH(run / "routed" / "checkpoint")[0]))),
    }
    before, after = (group_digests(run / name / "checkpoint") for name in ("merged", "routed"))
    moved = {group for group in before if before[group] != after[group]}
    assert moved == set(done["open_groups"])
    head = [
        CheckpointReader(run / name / "checkpoint").read(
            next(
                s for s in slots(ModelConfig.load(run / name / "checkpoint")) if s.name is HEAD_NAME
            )
        )
        for name in ("merged", "routed")
    ]
    # AdamW's first step is the rate, whatever the gradient.
    assert (head[1] - head[0]).abs().max().item() == pytest.approx(1e-4, rel=1e-2)
