"""The loop, in every layout: frozen stays, losses agree, a killed run goes on to the same bits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.training import Training
from megatron_bar.runtime import distributed
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.route import ROUTE_GROUPS
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from megatron_bar.training import optimizer
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed import ranks
from tests.distributed.stages import STEPS, assert_same_numbers, rows, run, training
from tests.layouts import EXPERTS

pytestmark = pytest.mark.distributed

STAGES = {"midtrain": MIDTRAIN_GROUPS, "sft": SFT_GROUPS, "route": ROUTE_GROUPS}


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """The metrics and digests of each stage in one process without the distributed optimizer."""
    found = {}
    for stage, groups in STAGES.items():
        folder = tmp_path_factory.mktemp(stage)
        settings = training(groups, distributed_optimizer=False)
        run(checkpoint, Layout(), settings, folder, validation=rows(3))
        found[stage] = read_metrics(folder)
    return found


@pytest.mark.parametrize("layout", EXPERTS.values(), ids=EXPERTS)
@pytest.mark.parametrize("stage", STAGES)
def test_frozen_is_bit_identical_and_numbers_equal_one_process(
    stage, layout, checkpoint, alone, tmp_path
):
    run(checkpoint, layout, training(STAGES[stage]), tmp_path / "run", validation=rows(3))
    before = group_digests(checkpoint)
    after = group_digests(tmp_path / "run" / "checkpoint")
    expected = {"expert.1", "router.1", "embeddings", "head", "final_norm"}
    expected = {
        "midtrain": {"expert.1", "router.1"},
        "sft": expected,
        "route": {"router.0", "router.1"},
    }[stage]
    assert {group for group in before if before[group] != after[group]} == expected
    metrics = read_metrics(tmp_path / "run")
    assert_same_numbers(metrics, alone[stage])
    assert [m["step"] for m in metrics if "validation_loss" in m] == [STEPS]
    layers, experts = np.shape(metrics[0]["router_load"])
    assert (layers, experts) == (4, 2) and len(metrics[0]["router_entropy"]) == layers
    assert np.sum(metrics[0]["router_load"], axis=1) == pytest.approx(1)
    assert 0 < min(metrics[0]["router_entropy"]) <= max(metrics[0]["router_entropy"]) < np.log(2)


@pytest.mark.parametrize("groups", [MIDTRAIN_GROUPS, SFT_GROUPS], ids=["midtrain", "sft"])
@pytest.mark.parametrize(
    "layout, distributed_optimizer",
    [
        (EXPERTS["tp1"], True),
        (EXPERTS["tp1"], False),
        (EXPERTS["ep2"], True),
        (EXPERTS["tp2pp2ep2"], True),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_to_the_same_bits(
    layout, distributed_optimizer, groups, checkpoint, tmp_path
):
    settings = training(groups, save_every=2, distributed_optimizer=distributed_optimizer)
    run(checkpoint, layout, settings, tmp_path / "whole")
    with pytest.raises(JobFailed):
        run(checkpoint, layout, settings, tmp_path / "killed", die_at_save=True)
    assert not (tmp_path / "killed" / "checkpoint").exists()
    run(checkpoint, layout, settings, tmp_path / "killed")
    assert group_digests(tmp_path / "whole" / "checkpoint") == group_digests(
        tmp_path / "killed" / "checkpoint"
    )
    for ours, theirs in zip(read_metrics(tmp_path / "killed"), read_metrics(tmp_path / "whole")):
        assert all(ours[key] == theirs[key] for key in ("step", "loss", "tokens", "lr"))
    assert len(read_metrics(tmp_path / "killed")) == STEPS


def _as_over_nccl(
    checkpoint: Path, layout: Layout, settings: Training, folder: Path, die_at_save: bool
) -> None:
    """Train without groups over gloo beside the others, which NCCL's ranks don't have."""
    for module in (distributed, optimizer):
        module.gloo_groups = lambda: False
    ranks.train_steps(checkpoint, layout, settings, rows(), folder, die_at_save)


def test_a_state_is_saved_and_read_without_groups_over_gloo(checkpoint, tmp_path):
    settings, layout = training(SFT_GROUPS, save_every=2), EXPERTS["ep2"]
    run(checkpoint, layout, settings, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    for die_at_save in (True, False):
        with pytest.raises(JobFailed) if die_at_save else contextlib.nullcontext():
            processes.start(
                _as_over_nccl,
                checkpoint,
                layout,
                settings,
                tmp_path / "killed",
                die_at_save,
                processes=2,
                timeout_seconds=120,
            ).wait()
    assert group_digests(tmp_path / "whole" / "checkpoint") == group_digests(
        tmp_path / "killed" / "checkpoint"
    )


def test_training_lowers_the_loss_and_reads_its_settings(checkpoint, tmp_path):
    settings = training(
        ("*",),
        steps=30,
        lr=3e-3,
        weight_decay=0.0,
        lr_scale={"embeddings": 0.1},
        global_batch_size=24,
        micro_batch_size=24,
    )
    run(checkpoint, Layout(), settings, tmp_path / "run")
    losses = [m["loss"] for m in read_metrics(tmp_path / "run")]
    assert losses[-1] < losses[0] - 1 and not torch.tensor(losses).isnan().any()
