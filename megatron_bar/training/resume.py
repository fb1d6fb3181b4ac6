"""Checkpoints in the middle of a stage: model, optimizer, schedule and step."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_bar.checkpoints.model_io import sharded_model_state, sharding_metadata
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.files import publish, staging_path

FOLDER = "resume"


class ResumePoint:
    """The one state a stage would go on from, in `folder`/resume."""

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizer: MegatronOptimizer,
        schedule: OptimizerParamScheduler,
    ) -> None:
        self.path = Path(folder) / FOLDER
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule

    def _state(self, loading: bool) -> dict:
        model = sharded_model_state(self.model)
        optimizer = self.optimizer.sharded_state_dict(
            model, is_loading=loading, metadata=sharding_metadata()
        )
        return {"model": model, "optimizer": optimizer}

    def save(self, step: int) -> None:
        """Every rank takes part; the folder takes its name when all have written."""
        staging = staging_path(self.path)
        if is_main():
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        dist.barrier()
        state = self._state(loading=False)
        state |= {"schedule": self.schedule.state_dict(), "step": step}
        dist_checkpointing.save(state, str(staging))
        dist.barrier()
        if is_main():
            publish(staging, self.path)
        dist.barrier()

    def load(self) -> int:
        """Restore the state; returns the number of steps that are done, 0 where none is saved."""
        if not self.path.is_dir():
            return 0
        state = dist_checkpointing.load(self._state(loading=True), str(self.path))
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return state["step"]

    def remove(self) -> None:
        if is_main():
            shutil.rmtree(self.path, ignore_errors=True)
