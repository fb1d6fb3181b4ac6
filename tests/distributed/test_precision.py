"""bf16, recomputation and settings of Megatron: close to the plain run, or equal to it."""

from __future__ import annotations

import json

import pytest

from megatron_bar.checkpoints.number_types import stored_types
from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed.stages import STEPS, assert_same_numbers, run, training
from tests.layouts import EXPERTS

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name, distributed_optimizer", [("tp1", False), ("tp2ep2", True)])
def test_bf16_is_close_and_resumes_to_the_same_bits(
    name, distributed_optimizer, checkpoint, tmp_path
):
    settings = dict(save_every=2, lr=1e-3, distributed_optimizer=distributed_optimizer)
    layout = EXPERTS[name]
    run(checkpoint, Layout(), training(SFT_GROUPS, **settings), tmp_path / "fp32")
    settings = training(SFT_GROUPS, dtype="bfloat16", **settings)
    run(checkpoint, layout, settings, tmp_path / "whole")
    with pytest.raises(JobFailed):
        run(checkpoint, layout, settings, tmp_path / "killed", die_at_save=True)
    run(checkpoint, layout, settings, tmp_path / "killed")
    assert group_digests(tmp_path / "killed" / "checkpoint") == group_digests(
        tmp_path / "whole" / "checkpoint"
    )
    numbers = [read_metrics(tmp_path / folder) for folder in ("whole", "fp32")]
    assert len(numbers[0]) == STEPS
    for ours, theirs in zip(*numbers):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
        assert ours["loss"] != theirs["loss"]
    assert stored_types(tmp_path / "whole" / "checkpoint") == stored_types(checkpoint)


@pytest.mark.parametrize(
    "name, groups, changes",
    [
        ("dp2", MIDTRAIN_GROUPS, {"recompute": "full"}),
        ("dp2", MIDTRAIN_GROUPS, {"recompute": "moe"}),
        ("dp2", MIDTRAIN_GROUPS, {"megatron": {"overlap_grad_reduce": True}}),
        ("ep2", ("expert.1",), {"recompute": "full"}),
        ("ep2", ("expert.1",), {"recompute": "moe"}),
    ],
    ids=json.dumps,
)
def test_settings_that_must_not_change_the_numbers(name, groups, changes, checkpoint, tmp_path):
    """Under frozen embeddings, where recomputation could silently leave the first layer out, and
    where a rank that trains nothing must take part in the other's backward pass.
    """
    run(checkpoint, EXPERTS[name], training(groups), tmp_path / "plain")
    run(checkpoint, EXPERTS[name], training(groups, **changes), tmp_path / "changed")
    assert_same_numbers(*(read_metrics(tmp_path / name) for name in ("changed", "plain")))
