"""A stage of RLVR: a learner, and a backend that takes its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.backends import Backend, backend_of
from megatron_bar.rlvr.learner import Learner
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stopping import ContinueLater, CutShort, StopAtStep
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.result_file import load_or_run
from megatron_bar.training.second_moments import save_second_moments


@dataclass(frozen=True)
class RlvrResult:
    """The result of an RLVR stage."""

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
            return (
                f"warning: nothing was learned, in {self.steps} steps all answers to each "
                f"prompt were worth the same: {reward}"
            )
        return reward


def reinforce(
    run: ModelRun, settings: Rlvr, prompts: Sequence[Prompt], chat_format: ChatFormat
) -> RlvrResult:
    """Train the run's model by its answers to `prompts`, and write its checkpoint.

    Called by every rank inside `process_groups(run.layout)`, which the backend was prepared before.
    A run that was killed continues to the same bits, sampling included, whatever backend goes on.

    Raises BarError for settings that don't fit; ContinueLater when it was asked to stop.
    """
    check_settings(settings, run.layout)
    needed = settings.prompts_per_step
    if len(prompts) < needed:
        raise BarError(
            f"{run.label}: there are {len(prompts)} prompts and a step asks {needed}; "
            "give more data or lower prompts_per_step"
        )
    backend = backend_of(settings.backend)
    with StopAtStep(run.folder, settings.stop_after_minutes) as stop:
        try:
            return load_or_run(
                run.folder,
                RlvrResult,
                lambda: _trained(Learner(run, settings, prompts, chat_format, stop), backend),
            )
        except CutShort:
            raise ContinueLater(f"{run.label}: {stop.reason_on_any_rank()}") from None


def _trained(learner: Learner, backend: Backend) -> RlvrResult:
    run, policy = learner.run, learner.policy
    policy.wrapped.train()
    with learner.recorded():
        try:
            backend.fit(learner)
        except CutShort:
            learner.give_up_step()
    learner.points.finish()
    if learner.stopped is not None:
        raise ContinueLater(f"{run.label}: {learner.stopped}, saved after step {learner.step}")
    run.write_checkpoint(policy.model, learner.step)
    if learner.settings.second_moments:
        save_second_moments(policy.model, learner.optimizer, run.config, run.folder / "checkpoint")
    return RlvrResult(
        learner.step,
        learner.progress.applied,
        learner.budget.trainable_count,
        learner.budget.frozen_count,
        learner.reward,
    )
