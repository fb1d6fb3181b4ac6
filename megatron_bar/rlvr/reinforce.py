"""A stage of RLVR: the model, the prompts and a trainer brought together, saved and resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_bar.checkpoints.convert import COMPANION_FOLDER
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.rlvr.backend import Job, RLBackend
from megatron_bar.rlvr.policy import Policy
from megatron_bar.rlvr.prompts import Prompt, PromptOrder
from megatron_bar.rlvr.rollouts import MegatronEngine
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.distributed import is_main, on_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import ContinueLater, StopAtStep
from megatron_bar.training.checkpoints import (
    check_finite,
    describe_resume_point,
    write_checkpoint,
)
from megatron_bar.training.metrics import Metrics
from megatron_bar.training.resume import Progress, ResumePoints
from megatron_bar.training.setup import set_up

DONE_FILE = "trained.json"
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


def reinforce(
    config: ModelConfig,
    start: Path,
    folder: Path,
    settings: Rlvr,
    prompts: Sequence[Prompt],
    stop_ids: frozenset[int],
    pad_id: int,
    decode: Callable[[list[int]], str],
    backend: RLBackend,
    layout: Layout,
    seed: int,
    what: str,
) -> Reinforced:
    """Improve the checkpoint `start` on `prompts`; writes `folder`/checkpoint, metrics and samples.

    Called by every rank inside `process_groups(layout)`. A run that was killed continues to the
    same bits, sampling included.

    Raises BarError for settings that don't fit; ContinueLater when it was asked to stop.
    """
    check_settings(settings, layout)
    if len(prompts) < settings.prompts_per_step:
        raise BarError(f"{what}: there are {len(prompts)} prompts and a step asks "
                       f"{settings.prompts_per_step}; give more data or lower prompts_per_step")
    done = folder / DONE_FILE
    with StopAtStep(settings.stop_after_minutes) as stop:
        if not on_main(done.is_file):
            reinforced = _Stage(
                config, start, folder, settings, prompts, stop_ids, pad_id, decode, layout, seed,
                what, stop,
            ).run(backend)
            if is_main():
                write_json(done, dataclasses.asdict(reinforced))
            dist.barrier()
    return Reinforced(**on_main(lambda: read_json(done)))


class _Stage:
    """The job that a trainer works on, and what is kept of it."""

    def __init__(
        self,
        config: ModelConfig,
        start: Path,
        folder: Path,
        settings: Rlvr,
        prompts: Sequence[Prompt],
        stop_ids: frozenset[int],
        pad_id: int,
        decode: Callable[[list[int]], str],
        layout: Layout,
        seed: int,
        what: str,
        stop: StopAtStep,
    ) -> None:
        self.config, self.folder, self.what = config, folder, what
        self.companions = start / COMPANION_FOLDER
        self.stop = stop
        responses = settings.prompts_per_step * settings.samples_per_prompt
        updates = settings.steps * (responses // settings.batch_size)
        trainee = set_up(config, start, settings, layout, updates, what)
        self.model, self.budget = trainee.model, trainee.budget
        policy = Policy(trainee.wrapped, settings.micro_batch_size, settings.temperature)
        if settings.kl_coefficient:
            policy.keep_start()
        self.points = ResumePoints(
            folder, self.model, trainee.optimizer, trainee.schedule, settings,
            lambda folder: describe_resume_point(folder, config, self.companions, start),
            RlvrProgress,
        )
        self.progress: RlvrProgress = self.points.load()
        order = PromptOrder(len(prompts), seed)
        if self.progress.step:
            say(f"{what}: goes on after step {self.progress.step}")
            order.restore(self.progress.order)
        self.reward = float("nan")
        self.stopped: str | None = None
        self.job = Job(
            settings=settings, seed=seed, policy=policy,
            engine=lambda model: MegatronEngine(model, settings.rollout_batch_size),
            optimizer=trainee.optimizer, schedule=trainee.schedule, prompts=prompts, order=order,
            stop_ids=stop_ids, pad_id=pad_id, decode=decode, log=self._log, sample=self._sample,
            save=self._save, stopping=self._stopping, applied=self.progress.applied,
        )

    def run(self, backend: RLBackend) -> Reinforced:
        steps, done = self.job.settings.steps, self.progress.step
        self.job.policy.wrapped.train()
        self._forget_samples_after(done)
        with (
            Metrics(self.folder, done, self.job.settings.wandb) as self.metrics,
            progress(self.what, steps) as self.advance,
        ):
            self.advance(done)
            state = backend.fit(self.job, self.progress.trainer or None)
        if self.stopped is not None:
            raise ContinueLater(f"{self.what}: {self.stopped}, saved after step {state['step']}")
        check_finite(self.model, f"{self.what}: after step {steps}")
        write_checkpoint(self.model, self.config, self.folder / "checkpoint", self.companions)
        self.points.remove()
        return Reinforced(steps, self.job.applied, self.budget.trainable_count,
                          self.budget.frozen_count, self.reward)

    def _log(self, step: int, numbers: dict[str, Any]) -> None:
        self.reward = numbers["reward"]
        self.metrics.log(step, **numbers)
        self.advance(note=f"reward {self.reward:.3f}")

    def _sample(self, step: int, sample: dict[str, Any]) -> None:
        if is_main():
            with open(self.folder / SAMPLES_FILE, "a") as file:
                file.write(json.dumps({"step": step, **sample}) + "\n")

    def _forget_samples_after(self, step: int) -> None:
        path = self.folder / SAMPLES_FILE
        if is_main() and path.is_file():
            lines = path.read_text().split("\n")[:-1]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in kept))

    def _save(self, trainer: dict[str, int]) -> None:
        step = trainer["step"]
        check_finite(self.model, f"{self.what}: after step {step}")
        self.points.save(RlvrProgress(
            step=step, applied=self.job.applied, trainer=trainer, order=self.job.order.state()
        ))

    def _stopping(self) -> bool:
        self.stopped = self.stop.agreed()
        return self.stopped is not None
