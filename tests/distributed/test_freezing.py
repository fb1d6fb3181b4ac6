"""Frozen means free, and works where it breaks others: ranks, stages and optimizer parts without
anything to train, checkpoints that change their layout on the way.
"""

from __future__ import annotations

import json

import pytest

from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from megatron_bar.training.budget import PADDING
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed import ranks
from tests.distributed.stages import assert_same_numbers, run, training
from tests.layouts import EXPERTS
from tests.models_hf import imported, random_model

pytestmark = pytest.mark.distributed

PATTERNS = {"midtrain": MIDTRAIN_GROUPS, "sft": SFT_GROUPS, "all": ("*",)}
MOMENTS, WITH_MAIN_WEIGHTS = 8, 12  # bytes an element


@pytest.mark.parametrize("name", ["tp1", "tp2", "pp2", "ep2", "dp2", "cp2ep2", "tp2pp2ep2"])
def test_the_bytes_reported_are_those_allocated_and_those_needed(name, checkpoint, tmp_path):
    layout = EXPERTS[name]
    trainings = {
        f"{pattern}_{kind}": training(groups, **settings)
        for pattern, groups in PATTERNS.items()
        for kind, settings in {
            "shared": {},
            "whole": {"distributed_optimizer": False},
            "bf16": {"dtype": "bfloat16"},
        }.items()
    }
    processes.start(
        ranks.budgets,
        checkpoint,
        layout,
        trainings,
        tmp_path,
        processes=layout.processes,
        timeout_seconds=280,
    ).wait()
    for key in trainings:
        found = [json.loads(path.read_text()) for path in tmp_path.glob(f"{key}-*.json")]
        assert len(found) == layout.processes
        element = WITH_MAIN_WEIGHTS if key.endswith("bf16") else MOMENTS
        for rank in found:
            padding = rank["gradients"].pop(PADDING, 0)
            assert sum(rank["gradients"].values()) == 4 * rank["open"]
            assert rank["allocated"]["gradients"] == 4 * rank["open"] + padding
            assert rank["allocated"]["optimizer"] == sum(rank["optimizer"].values())
            assert rank["grads_of_frozen"] == 0
            if key.endswith("whole"):
                assert padding == 0
                assert sum(rank["optimizer"].values()) == MOMENTS * rank["open"]
        total = sum(sum(rank["optimizer"].values()) for rank in found)
        shares = "open" if key.endswith("whole") else "shares"
        assert total == element * sum(rank[shares] for rank in found)
    for path in tmp_path.glob("midtrain_*.json"):
        rank = json.loads(path.read_text())
        assert set(rank["gradients"]) <= {"expert.1", "router.1", PADDING}
        assert rank["open"] <= (3 * 80 * 48 + 48) * 4 // layout.pipeline
    if layout.expert == 2:  # the anchor's rank trains no expert
        groups = [
            set(json.loads(path.read_text())["gradients"]) - {PADDING}
            for path in tmp_path.glob("midtrain_shared-*.json")
        ]
        assert {"router.1"} in groups


@pytest.mark.parametrize(
    "name, groups, distributed_optimizer",
    [
        ("pp2", ("head",), True),
        ("pp2", ("head",), False),
        ("pp2", ("embeddings",), True),
        ("ep2", ("expert.1",), True),
        ("ep2", ("expert.1",), False),
        ("tp2ep2", ("expert.1",), True),
        ("tp1", ("expert.1",), True),
        ("dp2", ("final_norm",), True),
        ("tp2pp2ep2", ("expert.0",), True),
    ],
    ids=str,
)
def test_ranks_and_optimizer_parts_without_anything_to_train(
    name, groups, distributed_optimizer, checkpoint, tmp_path
):
    settings = training(groups, save_every=2, distributed_optimizer=distributed_optimizer)
    run(checkpoint, Layout(), settings, tmp_path / "alone")
    with pytest.raises(JobFailed):
        run(checkpoint, EXPERTS[name], settings, tmp_path / "run", die_at_save=True)
    assert (tmp_path / "run" / "resume" / "2").is_dir()
    run(checkpoint, EXPERTS[name], settings, tmp_path / "run")
    assert_same_numbers(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "alone"))
    before, after = group_digests(checkpoint), group_digests(tmp_path / "run" / "checkpoint")
    assert {group for group in before if before[group] != after[group]} == set(groups)


@pytest.mark.parametrize(
    "name, groups",
    [
        ("tp2pp2", SFT_GROUPS),
        ("pp2", MIDTRAIN_GROUPS),
        ("dp2", ("head",)),
        ("tp2ep2", ("*",)),
    ],
    ids=str,
)
def test_tied_embeddings_norms_before_and_per_head_train_alike_in_every_layout(
    name, groups, tied, tmp_path
):
    """Killed on the way. Where embeddings are the head, opening the one opens the other."""
    settings = training(groups, save_every=2, lr_scale={"head": 0.5})
    run(tied, Layout(), settings, tmp_path / "alone")
    with pytest.raises(JobFailed):
        run(tied, EXPERTS[name], settings, tmp_path / "run", die_at_save=True)
    run(tied, EXPERTS[name], settings, tmp_path / "run")
    assert_same_numbers(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "alone"))
    before, after = group_digests(tied), group_digests(tmp_path / "run" / "checkpoint")
    groups = {"embeddings" if group == "head" else group for group in groups}
    assert {group for group in before if before[group] != after[group]} == (
        set(before) if groups == {"*"} else groups
    )


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    model = random_model("Qwen3-MoE", tie_word_embeddings=True)
    return imported(model, tmp_path_factory.mktemp("tied"))


@pytest.mark.parametrize(
    "first, second, groups, distributed_optimizer",
    [
        ("tp2", "pp2", MIDTRAIN_GROUPS, True),
        ("ep2", "tp1", SFT_GROUPS, True),
        ("tp1", "tp2pp2ep2", SFT_GROUPS, True),
        ("tp2pp2", "dp2", ("*",), True),
        ("dp2", "cp2ep2", MIDTRAIN_GROUPS, True),
        ("tp2", "ep2", SFT_GROUPS, False),
    ],
    ids=str,
)
def test_a_stage_goes_on_in_another_layout(
    first, second, groups, distributed_optimizer, checkpoint, tmp_path
):
    settings = training(groups, save_every=2, distributed_optimizer=distributed_optimizer)
    run(checkpoint, Layout(), settings, tmp_path / "alone")
    with pytest.raises(JobFailed):
        run(checkpoint, EXPERTS[first], settings, tmp_path / "run", die_at_save=True)
    run(checkpoint, EXPERTS[second], settings, tmp_path / "run")
    assert_same_numbers(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "alone"))


def test_a_stage_opens_what_the_last_one_froze_in_another_layout(checkpoint, tmp_path):
    numbers = []
    for folder, layouts in {"alone": ("tp1", "tp1"), "changing": ("tp2ep2", "tp2pp2")}.items():
        start = checkpoint
        for stage, (layout, groups) in enumerate(zip(layouts, (("expert.1",), ("*",)))):
            settings = training(groups, lr=1e-3)  # small, lest rounding grows over the steps
            run(start, EXPERTS[layout], settings, tmp_path / f"{folder}{stage}")
            start = tmp_path / f"{folder}{stage}" / "checkpoint"
        numbers.append(read_metrics(tmp_path / f"{folder}1"))
    assert_same_numbers(*numbers)
    before, after = group_digests(checkpoint), group_digests(start)
    assert not set(before.items()) & set(after.items())
