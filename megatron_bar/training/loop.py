"""One loop for every stage that trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_bar.checkpoints.convert import COMPANION_FOLDER
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


def train(
    config: ModelConfig,
    start: Path | None,
    folder: Path,
    training: Training,
    rows: Rows,
    pad_id: int,
    layout: Layout,
    seed: int,
    what: str,
    companions: Path | None = None,
    snapshots: Mapping[int, Path] | None = None,
    validation: Rows | None = None,
    begin: Begin | None = None,
    load_balancing: float = 0.0,
) -> Trained:
    """Train `config`'s model from the checkpoint `start` (random weights if None).

    Called by every rank inside `process_groups(layout)`. Writes `folder`/checkpoint, metrics and,
    while it runs, states to go on from: a run that was killed continues to the same bits, and under
    another layout to the same numbers but for rounding. `companions` is the folder whose tokenizer
    goes along, by default the start's. `snapshots` maps a number of steps to a checkpoint to write
    then. The loss on `validation` is measured at intervals. `begin` and `load_balancing` are those
    of `set_up`.

    Raises BarError for settings that don't fit the model, the layout or the data, and for a bad
    step; ContinueLater when it was asked to stop, with its state saved.
    """
    if companions is None and start is not None:
        companions = start / COMPANION_FOLDER

    def work() -> Trained:
        stage = _Stage(
            config, start, companions, folder, training, rows, validation, pad_id, layout, seed,
            what, begin, load_balancing,
        )
        stage.run(stop, snapshots or {})
        return stage.trained()

    with StopAtStep(training.stop_after_minutes) as stop:
        return once(folder, Trained, work)


class _Stage:
    """A model in training: its parts, and what one step does with them."""

    def __init__(
        self,
        config: ModelConfig,
        start: Path | None,
        companions: Path | None,
        folder: Path,
        training: Training,
        rows: Rows,
        validation: Rows | None,
        pad_id: int,
        layout: Layout,
        seed: int,
        what: str,
        begin: Begin | None,
        load_balancing: float,
    ) -> None:
        self.config, self.folder, self.training, self.what = config, folder, training, what
        self.companions = companions
        self.rows, self.validation, self.pad_id = rows, validation, pad_id
        self.batches = Batches.of(rows, training.batch_size, seed)
        self.steps = planned_steps(training, rows.per_epoch)
        trainee = set_up(
            config, start, training, layout, self.steps, what, begin, load_balancing
        )
        self.model, self.wrapped = trainee.model, trainee.wrapped
        self.optimizer, self.schedule = trainee.optimizer, trainee.schedule
        self.budget = trainee.budget
        self.points = ResumePoints(
            folder, self.model, self.optimizer, self.schedule, training,
            describe=lambda folder: describe_resume_point(folder, config, companions, start),
        )
        self.progress = self.points.load()
        if self.progress.step:
            say(f"{what}: goes on after step {self.progress.step}")
        self.guard = Guard(training, self.progress, what)
        self.watch = Watch(config, training, trainee.trainable, rows.source_names)
        self.routers = RouterWatch(self.model, config)
        self.loss = float("nan")

    def run(self, stop: StopAtStep, snapshots: Mapping[int, Path]) -> None:
        """All steps that remain, and the checkpoint."""
        done = self.progress.step
        self.wrapped.train()
        with (
            Metrics(self.folder, done, self.training.wandb) as metrics,
            progress(self.what, self.steps) as advance,
        ):
            advance(done)
            for step in range(done + 1, self.steps + 1):
                if reason := stop.agreed():
                    self._save()
                    self.points.finish()
                    raise ContinueLater(f"{self.what}: {reason}, saved after step {step - 1}")
                if numbers := self._step(step):
                    metrics.log(step, **numbers)
                advance(note=f"loss {self.loss:.3f}")
                with self.watch.paused():
                    self.points.check()
                    if step in snapshots:
                        self._write(snapshots[step])
                    if step < self.steps and self.points.due(step):
                        self._save()
        self.points.finish()
        self._write(self.folder / "checkpoint")

    def _step(self, step: int) -> dict[str, Any]:
        """One step; returns what there is to log, if anything."""
        training, last = self.training, step == self.steps
        validates = self.validation is not None and (last or step % training.validate_every == 0)
        logs = last or validates or step % training.log_every == 0
        self.schedule.step(1)
        self.optimizer.zero_grad()
        self.wrapped.zero_grad_buffer()
        indices = self.batches.micro_batches(
            step - 1, parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(), training.micro_batch_size,
        )
        batches = [to_batch(self.rows.take(chosen), self.pad_id) for chosen in indices]
        with self.routers.watching(logs):
            result = forward_backward(self.wrapped, batches, len(self.rows.source_names))
        norm = gradient_norm(self.optimizer)
        if self.guard.passes(step, result.loss, norm, lambda: describe_items(
            indices.reshape(-1), batches, result.row_losses, self.rows.source_names
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
                    self.wrapped, self.validation, self.pad_id, training.micro_batch_size
                )
        return numbers

    def _save(self) -> None:
        """A state to go on from."""
        check_finite(self.model, f"{self.what}: after step {self.progress.step}")
        self.points.save(self.progress)

    def _write(self, target: Path) -> None:
        check_finite(self.model, f"{self.what}: after step {self.progress.step}")
        write_checkpoint(self.model, self.config, target, self.companions)

    def trained(self) -> Trained:
        return Trained(
            self.steps, self.progress.tokens, self.budget.trainable_count,
            self.budget.frozen_count, self.progress.skipped, self.loss,
        )
