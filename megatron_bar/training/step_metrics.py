"""Metrics of a running stage: speed, memory, loss by source, router load and entropy."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.models.routing_record import RoutingRecord, layer_means, record_routing
from megatron_bar.recipe.training import Training
from megatron_bar.training.mfu import PeakFlops
from megatron_bar.training.step import StepResult


class StepMetrics:
    """Adds up steps between two logs. Every rank calls its methods alike."""

    def __init__(
        self,
        config: ModelConfig,
        training: Training,
        dtype: torch.dtype,
        trainable: Sequence[str],
        source_names: Sequence[str],
    ) -> None:
        self.config, self.trainable = config, trainable
        self.source_names = source_names
        self.peak_flops = PeakFlops(dtype, training.peak_tflops)
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()
        self._idle = 0.0
        self._steps = 0
        self._work = Work(0, 0, 0)
        self._by_source_D2 = torch.zeros(len(self.source_names), 2, dtype=torch.float64)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block, which isn't training, such as saving."""
        started = time.monotonic()
        yield
        self._idle += time.monotonic() - started

    def add(self, result: StepResult) -> None:
        self._steps += 1
        self._work += result.work
        self._by_source_D2 += result.by_source_D2

    def metrics(self) -> dict[str, Any]:
        """The metrics since the last call; starts anew.

        `tokens_per_second` counts all positions of the rows; `mfu` is the operations that
        models/flops.py counts, over the time and the peak of all devices, if that is known.
        `memory_gib` is the most that any rank has used since its start: resident, or allocated on
        the GPU.
        """
        seconds = max(time.monotonic() - self._since - self._idle, 1e-9)
        done = step_flops(self.config, self._work, self.trainable).total
        memory = torch.tensor(
            [_peak_memory()], dtype=torch.float64, device=torch.cuda.current_device()
        )
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        metrics = {
            "tokens_per_second": self._work.positions / seconds,
            "step_seconds": seconds / self._steps,
            "memory_gib": memory.item() / (1 << 30),
        } | losses_by_source("loss", self.source_names, self._by_source_D2)
        mfu = self.peak_flops.mfu(done / seconds, dist.get_world_size())
        self.restart()
        return metrics if mfu is None else metrics | {"mfu": mfu}


def losses_by_source(prefix: str, names: Sequence[str], sums_D2: torch.Tensor) -> dict[str, float]:
    """`prefix/NAME`: mean loss over the supervised tokens of each source that had any."""
    if len(names) < 2:
        return {}
    return {
        f"{prefix}/{name}": loss / tokens
        for name, (loss, tokens) in zip(names, sums_D2.tolist())
        if tokens
    }


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RouterMetrics:
    """Load and entropy of every layer's router, over the forward passes inside `recording`.

    Outside of it nothing hangs on the model.
    """

    def __init__(self, model: torch.nn.Module, config: ModelConfig) -> None:
        self.model = model
        self.config = config
        self._record: RoutingRecord | None = None

    @contextlib.contextmanager
    def recording(self, on: bool = True) -> Iterator[None]:
        if not on or self.config.num_experts is None:
            yield
            return
        self._record = RoutingRecord(self.config.num_layers, self.config.num_experts)
        with record_routing(self.model, self._record):
            yield

    def metrics(self) -> dict[str, Any]:
        """The metrics of the last `recording` block; every rank calls this.

        `router_load`, [L][E]: mean share of an expert, padding tokens included.
        `router_entropy`, [L]: mean over tokens, in nats; log(E) is an even router.
        """
        if self._record is None:
            return {}
        sums_LX = self._record.sums_LCX.sum(1)
        dist.all_reduce(sums_LX)
        load, entropy = layer_means(sums_LX)
        return {"router_load": load, "router_entropy": entropy}
