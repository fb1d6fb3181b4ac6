"""One loop for every stage that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core import parallel_state

from megatron_bar.data.batch import Batch, to_batch
from megatron_bar.data.batches import Batches, planned_steps
from megatron_bar.data.rows import Rows
from megatron_bar.data.transfer import MadeAhead
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.stopping import ContinueLater, StopAtStep
from megatron_bar.training.bad_steps import BadStepCheck, describe_items
from megatron_bar.training.metrics import Metrics
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.objective import TOKENS, Objective
from megatron_bar.training.optimizer import gradient_norm
from megatron_bar.training.param_gather import gather_parameters
from megatron_bar.training.profiling import StepProfile
from megatron_bar.training.result_file import load_or_run
from megatron_bar.training.resume import Progress, ResumePoints
from megatron_bar.training.second_moments import save_second_moments
from megatron_bar.training.setup import Initializer, set_up
from megatron_bar.training.step import forward_backward
from megatron_bar.training.step_metrics import RouterMetrics, StepMetrics
from megatron_bar.training.validation import validation_losses
from megatron_bar.training.waiting import Waiting


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training stage."""

    steps: int
    tokens: int  # supervised ones
    trainable: int  # parameters
    frozen: int
    skipped: int  # bad steps
    loss: float  # of the last step

    @property
    def summary(self) -> str:
        """A few words; a warning where nothing was learned."""
        if self.skipped == self.steps:
            return f"warning: nothing was learned, all {self.steps} steps were bad and skipped"
        return f"loss {self.loss:.3f}"


@dataclass(frozen=True)
class TrainingRun:
    """A training to be run: the model, the data, and the settings."""

    model_run: ModelRun
    training: Training
    rows: Rows
    pad_id: int
    snapshots: Mapping[int, Path] = field(default_factory=dict)  # steps: a checkpoint to write then
    validation: Rows | None = None  # the loss on these is measured at intervals
    initialize: Initializer | None = None  # both are those of `set_up`
    load_balancing_loss: float = 0.0
    objective: Objective = TOKENS

    def run(self) -> TrainingResult:
        """Called by every rank inside `process_groups(layout)`.

        A run that was killed continues to the same bits, and under another layout to the same
        numbers but for rounding.

        Raises BarError for settings that don't fit the model, the layout or the data, and for a bad
        step; ContinueLater when it was asked to stop, with its state saved.
        """
        folder = self.model_run.folder
        with StopAtStep(folder, self.training.stop_after_minutes) as stop:
            return load_or_run(folder, TrainingResult, lambda: _Stage(self).run(stop))


class _Stage:
    """A model in training: its parts, and what one step does with them."""

    def __init__(self, task: TrainingRun) -> None:
        self.task = task
        run, training = task.model_run, task.training
        self.batches = Batches.of(task.rows, training.global_batch_size, run.seed)
        self.steps = planned_steps(training, task.rows.per_epoch)
        setup = set_up(run, training, self.steps, task.initialize, task.load_balancing_loss)
        if warning := run.config.length_warning(training.sequence_length):
            say(f"{run.label}: {warning}")
        self.model, self.wrapped = setup.model, setup.wrapped
        self.optimizer, self.schedule = setup.optimizer, setup.schedule
        self.budget = setup.budget
        self.points = ResumePoints(run, setup, training, Progress)
        self.points.check_disk_space()
        self.progress = self.points.load()
        self.bad_step_check = BadStepCheck(training, self.progress, run.label)
        self.step_metrics = StepMetrics(
            run.config, training, setup.dtype, setup.trainable, task.rows.source_names
        )
        self.router_metrics = RouterMetrics(self.model, run.config)
        self.waiting = Waiting(self.wrapped, self.model.config)
        self.ahead = MadeAhead(self._micro_batches, self.steps)
        self.loss = float("nan")

    def _micro_batches(self, step: int) -> tuple[np.ndarray, list[Batch]]:
        """This rank's part of a step: the rows' numbers by micro-batch, and these."""
        task = self.task
        indices = self.batches.micro_batches(
            step - 1,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
            task.training.micro_batch_size,
        )
        return indices, [to_batch(task.rows.take(chosen), task.pad_id) for chosen in indices]

    def run(self, stop: StopAtStep) -> TrainingResult:
        """All steps that remain, and the checkpoint."""
        task, run, done = self.task, self.task.model_run, self.progress.step
        self.wrapped.train()
        with (
            contextlib.closing(self.ahead),
            Metrics(run.folder, done, task.training) as metrics,
            StepProfile(task.training.profile, run.folder, run.label) as profile,
            progress(run.label, self.steps) as advance,
        ):
            advance(done)
            profile.reached(done)
            for step in range(done + 1, self.steps + 1):
                if reason := stop.reason_on_any_rank():
                    self.points.save(self.progress)
                    self.points.finish()
                    raise ContinueLater(f"{run.label}: {reason}, saved after step {step - 1}")
                if numbers := self._step(step):
                    metrics.log(step, **numbers)
                profile.reached(step)
                advance(note=f"loss {self.loss:.3f}")
                with self.step_metrics.paused():
                    self.points.check()
                    if step in task.snapshots:
                        self._write_checkpoint(step, task.snapshots[step])
                    if step < self.steps and self.points.due(step):
                        self.points.save(self.progress)
        self.points.finish()
        self._write_checkpoint(self.steps)
        if task.training.second_moments:
            save_second_moments(self.model, self.optimizer, run.config, run.folder / "checkpoint")
        return TrainingResult(
            self.steps,
            self.progress.tokens,
            self.budget.trainable_count,
            self.budget.frozen_count,
            self.progress.skipped,
            self.loss,
        )

    def _write_checkpoint(self, step: int, folder: Path | None = None) -> None:
        gather_parameters(self.wrapped)
        self.task.model_run.write_checkpoint(self.model, step, folder)

    def _step(self, step: int) -> dict[str, Any]:
        """One step; returns what there is to log, if anything."""
        task, training, last = self.task, self.task.training, step == self.steps
        validates = task.validation is not None and (last or step % training.validate_every == 0)
        logs = last or validates or step % training.log_every == 0
        self.schedule.step(1)
        self.optimizer.zero_grad()
        self.wrapped.zero_grad_buffer()
        indices, batches = self.ahead.take(step)
        with self.router_metrics.recording(logs):
            result = forward_backward(
                self.wrapped, batches, len(task.rows.source_names), objective=task.objective
            )
        norm = gradient_norm(self.optimizer)
        if self.bad_step_check.passes(
            step,
            result.loss,
            norm,
            lambda: describe_items(
                indices.reshape(-1), batches, result.row_losses, task.rows.source_names
            ),
        ):
            self.optimizer.step()
        self.loss = result.loss
        self.progress.step = step
        self.progress.tokens += result.tokens
        self.step_metrics.add(result)
        if not logs:
            return {}
        numbers = {
            "loss": result.loss,
            "lr": self.schedule.get_lr({}),
            "grad_norm": norm,
            "tokens": self.progress.tokens,
            "skipped": self.progress.skipped,
            **result.metrics,
            **self.step_metrics.metrics(),
            **self.waiting.metrics(task.model_run.label),
            **self.router_metrics.metrics(),
        }
        if validates and task.validation is not None:
            with self.step_metrics.paused():
                numbers |= validation_losses(
                    self.wrapped, task.validation, task.pad_id, training.micro_batch_size
                )
        return numbers
