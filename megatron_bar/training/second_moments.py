"""AdamW's second moments of shared parameters, left with a stage's checkpoint for a merge.

What `merge.shared: fisher` weighs branches by. They are fp32, a checkpoint of their own in the
folder of the stage's, and in the same keys in every layout.
"""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core.optimizer import MegatronOptimizer

from megatron_bar.checkpoints.model_io import save_shards, sharded_model_state
from megatron_bar.checkpoints.names import shared_names, slots
from megatron_bar.checkpoints.second_moments import FOLDER, PREFIX
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.distributed import written_together
from megatron_bar.training.boxes import one_key_a_slice
from megatron_bar.training.optimizer_state import sharded_optimizer_state


def save_second_moments(
    model: torch.nn.Module, optimizer: MegatronOptimizer, config: ModelConfig, checkpoint: Path
) -> None:
    """Write those of the shared parameters that train beside `checkpoint`'s tensors.

    Every rank takes part. Parameters that are frozen have none.
    """
    shared = set(shared_names(config))
    keys = {
        ".".join((PREFIX, slot.key, *map(str, slot.index)))
        for slot in slots(config)
        if slot.name in shared
    }
    weights = one_key_a_slice(sharded_model_state(model))
    found = {
        shard.key + str(shard.global_offset): shard
        for part in optimizer.chained_optimizers
        for tensors in sharded_optimizer_state(part, weights).values()
        for shard in tensors["exp_avg_sq"]
        if shard.key in keys
    }
    with written_together(checkpoint / FOLDER) as folder:
        # Megatron-Core complains of an empty dictionary that other ranks don't have.
        save_shards({"moments": found} if found else {}, folder)
