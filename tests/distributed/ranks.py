"""What the ranks of the distributed tests run. Importable, so that they can be started."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.checkpoints.model_io import load_model, save_model
from megatron_bar.data.packing import Batch
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.olmo import build_model
from megatron_bar.recipe.schema import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.step import forward_backward


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(**{name: value[rows] for name, value in vars(batch).items()})


def logits_and_gradients(checkpoint: Path, layout: Layout, batch: Batch, out: Path) -> None:
    """Write logits.pt, loss.json and the gradients (as a checkpoint) of one batch into `out`."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        model = build_model(config, layout)
        load_model(model, checkpoint)
        data_rank = parallel_state.get_data_parallel_rank()
        data_size = parallel_state.get_data_parallel_world_size()
        rows = len(batch.tokens_BS) // data_size
        mine = rows_of(batch, slice(data_rank * rows, (data_rank + 1) * rows))
        wrapped = wrap(model, Training(distributed_optimizer=False))
        wrapped.train()
        micro_batches = [rows_of(mine, slice(i, i + 1)) for i in range(rows)]
        loss, tokens = forward_backward(wrapped, micro_batches)
        for parameter in model.parameters():
            parameter.data = parameter.main_grad.clone()
        save_model(model, out / "gradients")
        if dist.get_rank() == 0:
            config.save(out / "gradients")
            (out / "loss.json").write_text(json.dumps({"loss": loss, "tokens": tokens}))
