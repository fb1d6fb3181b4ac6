"""A short stage of training, started in any layout, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.launch import processes
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout
from tests.distributed import ranks

STEPS = 4


def training(groups: Sequence[str], **changes) -> Training:
    settings = dict(
        trainable=list(groups),
        steps=STEPS,
        sequence_length=24,
        global_batch_size=4,
        micro_batch_size=1,
        lr=1e-2,
        weight_decay=0.1,
        warmup_ratio=0.0,
        log_every=1,
        router_z_loss=1e-3,
    )
    return Training(**settings | changes)


def rows(count: int = 24, length: int = 24) -> PackedRows:
    """Rows of two documents each, from two sources."""
    random = np.random.RandomState(0)
    documents = np.where(np.arange(length) < random.randint(4, length - 4, (count, 1)), 1, 2)
    return PackedRows(
        random.randint(0, 331, (count, length)).astype(np.int32),
        random.rand(count, length) < 0.7,
        documents.astype(np.int32),
        (documents - 1).astype(np.int16),
        PackReport(),
        ("one", "two"),
    )


def start(
    checkpoint: Path, layout: Layout, settings: Training, folder: Path, **more
) -> processes.Job:
    folder.mkdir(exist_ok=True)
    arguments = (
        more.get("die_at_save", False),
        more.get("validation"),
        more.get("snapshots"),
        more.get("bad_steps", 0),
        more.get("longest_file"),
        more.get("unmarked", False),
    )
    return processes.start(
        ranks.train_steps,
        checkpoint,
        layout,
        settings,
        rows(),
        folder,
        *arguments,
        processes=layout.processes,
        timeout_seconds=240,
        log=more.get("log"),
    )


def run(checkpoint: Path, layout: Layout, settings: Training, folder: Path, **more) -> None:
    """Train to the end; `more` as ranks.train_steps has it, and a `log` for what is said."""
    start(checkpoint, layout, settings, folder, **more).wait()


def assert_same_numbers(ours: list[dict], theirs: list[dict]) -> None:
    """All that two runs tell of their steps is equal but for rounding; speed is left out."""
    assert len(ours) == len(theirs)
    tolerances = {"grad_norm": 1e-3, "router_load": 1e-3, "router_entropy": 1e-3}
    speed = {"tokens_per_second", "step_seconds", "mfu", "memory_gib"}
    speed |= {"ranks_waiting_share", "slowest_rank"}  # which a lone rank hasn't
    for our, their in zip(ours, theirs):
        assert our.keys() - speed == their.keys() - speed
        for name in our.keys() - speed:
            assert np.array(our[name]) == pytest.approx(
                np.array(their[name]), rel=tolerances.get(name, 1e-4)
            ), f"{name} at step {our['step']}"
