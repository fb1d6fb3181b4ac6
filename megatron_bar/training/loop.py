"""One loop for every stage that trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_bar.checkpoints.companions import COMPANION_FOLDER
from megatron_bar.data.batch import to_batch
from megatron_bar.data.batches import Batches, planned_steps
from megatron_bar.data.rows import Rows
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Training
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import ContinueLater, StopAtStep
from megatron_bar.training.checkpoints import (
    check_finite,
    describe_resume_point,
    write_checkpoint,
)
from megatron_bar.training.guards import Guard, describe_items
from megatron_bar.training.metrics import Metrics
from megatron_bar.training.once import once
from megatron_bar.training.optimizer import apply_gradients, gradient_norm
from megatron_bar.training.resume import ResumePoints
from megatron_bar.training.setup import Begin, set_up
from megatron_bar.training.step import forward_backward
from megatron_bar.training.validation import validation_losses
from megatron_bar.training.watch import RouterWatch, Watch


@dataclass(frozen=True)
class Trained:
    """What a training stage has to tell afterwards."""

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
    """What is to be trained, on what, and how."""

    config: ModelConfig
    start: Path | None  # a checkpoint; None for random weights
    folder: Path  # gets checkpoint/, metrics and, while it runs, states to go on from
    training: Training
    rows: Rows
    pad_id: int
    layout: Layout
    seed: int
    what: str  # how messages call it
    companions: Path | None = None  # the folder whose tokenizer goes along, by default the start's
    snapshots: Mapping[int, Path] = field(default_factory=dict)  # steps: a checkpoint to write then
    validation: Rows | None = None  # the loss on these is measured at intervals
    begin: Begin | None = None  # both are those of `set_up`
    load_balancing: float = 0.0

    def run(self) -> Trained:
        """Called by every rank inside `process_groups(layout)`.

        A run that was killed continues to the same bits, and under another layout to the same
        numbers but for rounding.

        Raises BarError for settings that don't fit the model, the layout or the data, and for a bad
        step; ContinueLater when it was asked to stop, with its state saved.
        """
        with StopAtStep(self.training.stop_after_minutes) as stop:
            return once(self.folder, Trained, lambda: _Stage(self).run(stop))


class _Stage:
    """A model in training: its parts, and what one step does with them."""

    def __init__(self, task: TrainingRun) -> None:
        self.task = task
        training = task.training
        self.companions = task.companions
        if self.companions is None and task.start is not None:
            self.companions = task.start / COMPANION_FOLDER
        self.batches = Batches.of(task.rows, training.batch_size, task.seed)
        self.steps = planned_steps(training, task.rows.per_epoch)
        trainee = set_up(
            task.config, task.start, training, task.layout, self.steps, task.what, task.begin,
            task.load_balancing,
        )
        if warning := task.config.length_warning(training.sequence_length):
            say(f"{task.what}: {warning}")
        self.model, self.wrapped = trainee.model, trainee.wrapped
        self.optimizer, self.schedule = trainee.optimizer, trainee.schedule
        self.budget = trainee.budget
        self.points = ResumePoints(
            task.folder, self.model, self.optimizer, self.schedule, training,
            lambda folder: describe_resume_point(
                folder, task.config, self.companions, task.start
            ),
        )
        self.points.check_room(task.what, task.start)
        self.progress = self.points.load()
        if self.progress.step:
            say(f"{task.what}: goes on after step {self.progress.step}")
        self.guard = Guard(training, self.progress, task.what)
        self.watch = Watch(task.config, training, trainee.dtype, trainee.trainable,
                           task.rows.source_names)
        self.routers = RouterWatch(self.model, task.config)
        self.loss = float("nan")

    def run(self, stop: StopAtStep) -> Trained:
        """All steps that remain, and the checkpoint."""
        task, done = self.task, self.progress.step
        self.wrapped.train()
        with (
            Metrics(task.folder, done, task.training.wandb) as metrics,
            progress(task.what, self.steps) as advance,
        ):
            advance(done)
            for step in range(done + 1, self.steps + 1):
                if reason := stop.agreed():
                    self._save()
                    self.points.finish()
                    raise ContinueLater(f"{task.what}: {reason}, saved after step {step - 1}")
                if numbers := self._step(step):
                    metrics.log(step, **numbers)
                advance(note=f"loss {self.loss:.3f}")
                with self.watch.paused():
                    self.points.check()
                    if step in task.snapshots:
                        self._write(task.snapshots[step])
                    if step < self.steps and self.points.due(step):
                        self._save()
        self.points.finish()
        self._write(task.folder / "checkpoint")
        return Trained(
            self.steps, self.progress.tokens, self.budget.trainable_count,
            self.budget.frozen_count, self.progress.skipped, self.loss,
        )

    def _step(self, step: int) -> dict[str, Any]:
        """One step; returns what there is to log, if anything."""
        task, training, last = self.task, self.task.training, step == self.steps
        validates = task.validation is not None and (last or step % training.validate_every == 0)
        logs = last or validates or step % training.log_every == 0
        self.schedule.step(1)
        self.optimizer.zero_grad()
        self.wrapped.zero_grad_buffer()
        indices = self.batches.micro_batches(
            step - 1, parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(), training.micro_batch_size,
        )
        batches = [to_batch(task.rows.take(chosen), task.pad_id) for chosen in indices]
        with self.routers.watching(logs):
            result = forward_backward(self.wrapped, batches, len(task.rows.source_names))
        norm = gradient_norm(self.optimizer)
        if self.guard.passes(step, result.loss, norm, lambda: describe_items(
            indices.reshape(-1), batches, result.row_losses, task.rows.source_names
        )):
            apply_gradients(self.optimizer, norm)
        self.loss = result.loss
        self.progress.step = step
        self.progress.tokens += result.tokens
        self.watch.add(result)
        if not logs:
            return {}
        numbers = {
            "loss": result.loss, "lr": self.schedule.get_lr({}), "grad_norm": norm,
            "tokens": self.progress.tokens, "skipped": self.progress.skipped,
            **self.watch.numbers(), **self.routers.numbers(),
        }
        if validates:
            with self.watch.paused():
                numbers |= validation_losses(
                    self.wrapped, task.validation, task.pad_id, training.micro_batch_size
                )
        return numbers

    def _save(self) -> None:
        """A state to go on from."""
        check_finite(self.model, f"{self.task.what}: after step {self.progress.step}")
        self.points.save(self.progress)

    def _write(self, target: Path) -> None:
        check_finite(self.model, f"{self.task.what}: after step {self.progress.step}")
        write_checkpoint(self.model, self.task.config, target, self.companions, self.task.start)
