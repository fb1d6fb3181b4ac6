"""`deterministic: true`: the same bits twice, and after a kill; frozen bits always."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from megatron_bar.data.rows import PackedRows
from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.determinism import compute_deterministically
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import SFT_GROUPS
from megatron_bar.training.groups import group_digests
from tests.distributed import ranks
from tests.distributed.stages import rows, training
from tests.models_hf import imported, random_experts

# One worker does all: the tests share what is made first.
pytestmark = pytest.mark.xdist_group("same bits")
OPEN = {"expert.1", "router.1", "embeddings", "head", "final_norm"}


def _train(
    checkpoint: Path, settings: Training, data: PackedRows, folder: Path, die_at_save: bool
) -> None:
    if settings.deterministic:
        compute_deterministically()
    ranks.train_steps(checkpoint, Layout(), settings, data, folder, die_at_save)


def _digests(
    checkpoint: Path, settings: Training, folder: Path, killed: bool = False
) -> dict[str, str]:
    folder.mkdir()
    data = rows(length=settings.sequence_length)
    for dies in [True, False] if killed else [False]:
        with pytest.raises(JobFailed) if dies else contextlib.nullcontext():
            processes.start(
                _train, checkpoint, settings, data, folder, dies, timeout_seconds=300
            ).wait()
    return group_digests(folder / "checkpoint")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, row_length) -> Path:
    model = random_experts(
        2,
        hidden_size=256,
        intermediate_size=352,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=row_length,
    )
    return imported(model, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_runs_and_one_that_was_killed(dtype, checkpoint, row_length, tmp_path):
    settings = training(
        SFT_GROUPS, save_every=2, dtype=dtype, sequence_length=row_length // 4, deterministic=True
    )
    once, twice = (_digests(checkpoint, settings, tmp_path / name) for name in ("once", "twice"))
    killed = _digests(checkpoint, settings, tmp_path / "killed", killed=True)
    assert once == twice == killed
    before = group_digests(checkpoint)
    assert {group for group in before if before[group] != once[group]} == OPEN


def test_frozen_parameters_keep_their_bits_without_it(checkpoint, row_length, tmp_path):
    settings = training(SFT_GROUPS, save_every=2, dtype="bfloat16", sequence_length=row_length // 4)
    before = group_digests(checkpoint)
    after = _digests(checkpoint, settings, tmp_path / "run", killed=True)
    assert {group for group in before if before[group] != after[group]} == OPEN
