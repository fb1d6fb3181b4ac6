"""The messages that Megatron-Core really sends in a step, counted in one process.

All other ranks are made up: torch's fake process group takes part for them and moves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime import cpu
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.overrides import transformer_overrides
from megatron_bar.training.step import forward_backward
from tests.models_hf import packed_batch


class _Counted(TorchDispatchMode):
    """Adds up the bytes of each kind's whole buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("c10d::")
        if name == "_allgather_base_":
            self.bytes["all-gather"] += args[0].nbytes
        elif name == "allgather_into_tensor_coalesced_":
            self.bytes["all-gather"] += sum(tensor.nbytes for tensor in args[0])
        elif name == "_reduce_scatter_base_":
            self.bytes["reduce-scatter"] += args[1].nbytes
        elif name == "reduce_scatter_tensor_coalesced_":
            self.bytes["reduce-scatter"] += sum(tensor.nbytes for tensor in args[1])
        elif name == "allreduce_":
            self.bytes["all-reduce"] += sum(tensor.nbytes for tensor in args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _made_up_ranks(layout: Layout) -> Iterator[None]:
    """Megatron's groups as rank 1 of `layout` sees them, which has expert 1 under EP 2."""
    cpu.install()
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=layout.processes)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=layout.resolved_expert_tensor,
            create_gloo_process_groups=False,
        )
        model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def bytes_sent(
    model: ModelConfig, layout: Layout, training: Training, trainable: list[str]
) -> Counter[str]:
    """Bytes of the whole buffers of a step's collectives by kind, and of weights gathered after."""
    with _made_up_ranks(layout):
        overrides = transformer_overrides(training)
        ours = build_model(model, layout, getattr(torch, training.dtype), overrides=overrides)
        freeze(ours, model, trainable)
        wrapped = wrap(ours, training)
        rows = training.global_batch_size // layout.data
        batches = [
            packed_batch(model.vocab_size, training.micro_batch_size, training.sequence_length)
            for _ in range(rows // training.micro_batch_size)
        ]
        with _Counted() as counted:
            forward_backward(wrapped, batches)
            if training.distributed_optimizer:
                wrapped.start_param_sync(force_sync=True)
    return counted.bytes
