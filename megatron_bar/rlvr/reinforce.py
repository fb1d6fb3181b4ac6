"""A stage of RLVR: the model, the prompts and a trainer brought together, saved and resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.olmo import OlmoModel
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.rlvr.backend import Job, RLBackend
from megatron_bar.rlvr.engine import RolloutEngine
from megatron_bar.rlvr.openai_engine import ServedModel
from megatron_bar.rlvr.policy import Policy
from megatron_bar.rlvr.prompts import Prompt, PromptOrder
from megatron_bar.rlvr.rollouts import MegatronEngine
from megatron_bar.rlvr.settings import check_settings, reference_share
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import ContinueLater, StopAtStep
from megatron_bar.training.checkpoints import (
    check_finite,
    describe_resume_point,
    write_checkpoint,
)
from megatron_bar.training.metrics import Metrics
from megatron_bar.training.once import once
from megatron_bar.training.resume import Progress, ResumePoints
from megatron_bar.training.setup import set_up
from megatron_bar.training.step_lines import StepLines

SAMPLES_FILE = "samples.jsonl"


@dataclass
class RlvrProgress(Progress):
    """`step` counts rollouts; what the trainer and the order of prompts need besides."""

    applied: int = 0  # optimizer steps
    trainer: dict[str, int] = field(default_factory=dict)
    order: dict[str, Any] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        return self.applied


@dataclass(frozen=True)
class Reinforced:
    """What the stage has to tell afterwards."""

    steps: int
    updates: int
    trainable: int  # parameters
    frozen: int
    reward: float  # mean of the last step, unscaled

    @property
    def summary(self) -> str:
        """A few words; a warning where nothing was learned."""
        reward = f"reward {self.reward:.3f}"
        if self.updates == 0:
            return (f"warning: nothing was learned, in {self.steps} steps all answers to each "
                    f"prompt were worth the same: {reward}")
        return reward


@dataclass(frozen=True)
class Reinforcement:
    """What is to be improved, on what, and how."""

    config: ModelConfig
    start: Path  # a checkpoint
    folder: Path  # gets checkpoint/, metrics and samples
    settings: Rlvr
    companions: Path  # the folder whose tokenizer goes along
    prompts: Sequence[Prompt]
    stop_ids: frozenset[int]
    pad_id: int
    decode: Callable[[list[int]], str]
    layout: Layout
    seed: int
    what: str  # how messages call it

    def run(self, backend: RLBackend) -> Reinforced:
        """Called by every rank inside `process_groups(layout)`.

        A run that was killed continues to the same bits, sampling included.

        Raises BarError for settings that don't fit; ContinueLater when it was asked to stop.
        """
        check_settings(self.settings, self.layout)
        needed = self.settings.prompts_per_step
        if len(self.prompts) < needed:
            raise BarError(f"{self.what}: there are {len(self.prompts)} prompts and a step asks "
                           f"{needed}; give more data or lower prompts_per_step")
        with StopAtStep(self.settings.stop_after_minutes) as stop:
            return once(self.folder, Reinforced, lambda: _Stage(self, stop).run(backend))

    def engine(self, model: OlmoModel) -> RolloutEngine:
        """What generates with the weights that `model` has now."""
        settings = self.settings
        if not settings.rollout_servers:
            return MegatronEngine(model, settings.rollout_batch_size)
        served = ServedModel(self.config, self.companions, settings)
        return served.engine(model)


class _Stage:
    """The job that a trainer works on, and what is kept of it."""

    def __init__(self, task: Reinforcement, stop: StopAtStep) -> None:
        self.task, self.stop = task, stop
        settings = task.settings
        responses = settings.prompts_per_step * settings.samples_per_prompt
        updates = settings.steps * (responses // settings.batch_size)
        trainee = set_up(task.config, task.start, settings, task.layout, updates, task.what)
        self.model, self.budget = trainee.model, trainee.budget
        policy = Policy(trainee.wrapped, settings.micro_batch_size, settings.temperature)
        if reference_share(settings):
            policy.keep_start()
        self.points = ResumePoints(
            task.folder, self.model, trainee.optimizer, trainee.schedule, settings,
            lambda folder: describe_resume_point(
                folder, task.config, task.companions, task.start
            ),
            RlvrProgress,
        )
        self.points.check_room(task.what, task.start)
        self.progress: RlvrProgress = self.points.load()
        order = PromptOrder(len(task.prompts), task.seed)
        if self.progress.step:
            say(f"{task.what}: goes on after step {self.progress.step}")
            order.restore(self.progress.order)
        self.reward = float("nan")
        self.stopped: str | None = None
        self.job = Job(
            settings=settings, seed=task.seed, policy=policy, engine=task.engine,
            optimizer=trainee.optimizer, schedule=trainee.schedule, prompts=task.prompts,
            order=order, stop_ids=task.stop_ids, pad_id=task.pad_id, decode=task.decode,
            log=self._log, sample=self._sample, save=self._save, stopping=self._stopping,
            applied=self.progress.applied,
        )

    def run(self, backend: RLBackend) -> Reinforced:
        task, done = self.task, self.progress.step
        steps = task.settings.steps
        self.job.policy.wrapped.train()
        with ExitStack() as stack:
            self.metrics = stack.enter_context(Metrics(task.folder, done, task.settings.wandb))
            if is_main():
                self.samples = stack.enter_context(StepLines(task.folder / SAMPLES_FILE, done))
            self.advance = stack.enter_context(progress(task.what, steps))
            self.advance(done)
            state = backend.fit(self.job, self.progress.trainer or None)
        self.points.finish()
        if self.stopped is not None:
            raise ContinueLater(f"{task.what}: {self.stopped}, saved after step {state['step']}")
        check_finite(self.model, f"{task.what}: after step {steps}")
        write_checkpoint(
            self.model, task.config, task.folder / "checkpoint", task.companions, task.start
        )
        return Reinforced(steps, self.job.applied, self.budget.trainable_count,
                          self.budget.frozen_count, self.reward)

    def _log(self, step: int, numbers: dict[str, Any]) -> None:
        self.reward = numbers["reward"]
        self.metrics.log(step, **numbers)
        self.advance(note=f"reward {self.reward:.3f}")

    def _sample(self, step: int, sample: dict[str, Any]) -> None:
        if is_main():
            self.samples.add(step, **sample)

    def _save(self, trainer: dict[str, int]) -> None:
        step = trainer["step"]
        check_finite(self.model, f"{self.task.what}: after step {step}")
        self.points.save(RlvrProgress(
            step=step, applied=self.job.applied, trainer=trainer, order=self.job.order.state()
        ))

    def _stopping(self) -> bool:
        self.points.check()
        self.stopped = self.stop.agreed()
        return self.stopped is not None
