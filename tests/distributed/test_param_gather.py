"""Weights that are gathered during the forward pass: the same bits as those gathered at once."""

from __future__ import annotations

import pytest

from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed.stages import rows, run, training
from tests.layouts import EXPERTS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

# Buckets of a few parameters each; experts have some of their own.
BUCKETS = {"overlap_grad_reduce": True, "bucket_size": 3000}


def _settings(gathers: bool, **changes):
    groups = ("expert.1", "router.1", "embeddings", "attention", "final_norm", "head")
    megatron = BUCKETS | {"overlap_param_gather": gathers}
    # Two micro-batches a rank. The loss on other data reads new weights after steps 2 and 4; states
    # and checkpoints of steps 1 and 3 are written with no forward pass before.
    return training(groups, validate_every=2, megatron=megatron, **changes)


def _told(folder) -> list[dict]:
    timed = {
        "tokens_per_second",
        "step_seconds",
        "mfu",
        "memory_gib",
        "ranks_waiting_share",
        "slowest_rank",
    }
    return [
        {k: v for k, v in numbers.items() if k not in timed} for numbers in read_metrics(folder)
    ]


@pytest.mark.parametrize(
    "layout, killed, changes",
    [
        (EXPERTS["dp2"], True, {"save_every": 1}),
        # Experts, too, are held by two ranks each.
        (
            Layout(4, tensor=2, expert=2, expert_tensor=1),
            False,
            {"dtype": "bfloat16", "recompute": "full"},
        ),
    ],
    ids=["dp2, killed", "tp2ep2dp2 in bf16, recomputed"],
)
def test_the_same_bits(layout, killed, changes, checkpoint, tmp_path):
    at_once, ours = tmp_path / "at-once", tmp_path / "ours"
    snapshots = {folder: {3: folder / "after-3"} for folder in (at_once, ours)}

    def train(folder, gathers, **more):
        settings = _settings(gathers, **changes)
        more |= {"validation": rows(3), "snapshots": snapshots[folder]}
        run(checkpoint, layout, settings, folder, **more)

    train(at_once, False)
    if killed:
        with pytest.raises(JobFailed):
            train(ours, True, die_at_save=True)
    train(ours, True)
    assert _told(ours) == _told(at_once)
    for name in ("after-3", "checkpoint"):
        assert group_digests(ours / name) == group_digests(at_once / name)
