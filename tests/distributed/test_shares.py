"""Ranks that hold the same share what is to be written and read: each byte goes once."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch

from megatron_bar.checkpoints.dcp_index import read_index
from megatron_bar.checkpoints.names import slots
from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import SFT_GROUPS
from megatron_bar.training.groups import group_digests
from tests.distributed import ranks
from tests.distributed.stages import run, training

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

RANKS = 3  # no size of the model is a multiple
_MOST = 1 / RANKS + 0.1  # of all bytes, in one rank: tensors are shared out whole


def test_each_rank_writes_its_share_of_a_state_once(checkpoint, tmp_path):
    settings = training(SFT_GROUPS, save_every=2, dtype="bfloat16", global_batch_size=6)
    with pytest.raises(JobFailed):
        run(checkpoint, Layout(RANKS), settings, tmp_path / "run", die_at_save=True)
    index = read_index(tmp_path / "run" / "resume" / "2")
    written: Counter[int] = Counter()
    for key, tensor in index.tensors.items():
        assert sum(chunk.sizes.numel() for chunk in tensor.chunks) == tensor.size.numel(), key
        for chunk in tensor.chunks:
            rank = int(re.match(r"__(\d+)_", index.places[key, chunk.offsets].file)[1])
            written[rank] += chunk.sizes.numel() * tensor.dtype.itemsize
    assert len(written) == RANKS and max(written.values()) < _MOST * written.total()
    moments = [tensor for key, tensor in index.tensors.items() if "exp_avg_sq" in key]
    assert any(len(tensor.chunks) > 1 for tensor in moments)  # none is gathered to be written


def test_the_proof_of_freezing_reads_each_tensor_once(checkpoint, tmp_path):
    processes.start(
        ranks.count_digested,
        checkpoint,
        Layout(RANKS),
        tmp_path,
        processes=RANKS,
        timeout_seconds=200,
    ).wait()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert all(digests == group_digests(checkpoint) for digests, _ in found)
    read = [numbers for _, numbers in found]
    assert sum(read) == sum(
        torch.Size(slot.shape).numel() for slot in slots(ModelConfig.load(checkpoint))
    )
    assert max(read) < _MOST * sum(read)


def test_each_byte_is_read_once_at_a_start(checkpoint, tmp_path):
    processes.start(
        ranks.count_loaded,
        checkpoint,
        Layout(RANKS),
        tmp_path,
        processes=RANKS,
        timeout_seconds=200,
    ).wait()
    read = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    stored = sum(path.stat().st_size for path in checkpoint.glob("*.distcp"))
    index = read_index(checkpoint)
    overhead = 16384 * sum(len(tensor.chunks) for tensor in index.tensors.values())
    assert sum(read) < stored + overhead and min(read) > 0
    assert max(read) < _MOST * (stored + overhead)
