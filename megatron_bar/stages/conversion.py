"""Common parts of stages that only convert checkpoints: they stream, and need no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_bar.stages.stage import Stage

if TYPE_CHECKING:
    import torch

    from megatron_bar.costs.machine import Machine
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.stages.plan import StagePlan


@dataclass(frozen=True)
class ConversionStage(Stage):
    """A stage that reads checkpoints or Hugging Face folders and writes one."""

    def plan(self, model: ModelConfig, machine: Machine, stored: torch.dtype) -> StagePlan:
        from megatron_bar.stages.plan import plan_conversion

        return plan_conversion(self, model, machine, stored)
