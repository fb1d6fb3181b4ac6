"""What an RLVR trainer is given, and what it must do: the one interface behind the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_bar.generation.engine import RolloutEngine
from megatron_bar.models.olmo import OlmoModel
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.rlvr.policy import Policy
from megatron_bar.rlvr.prompts import Prompt, PromptOrder


@dataclass
class Job:
    """A policy to improve on prompts, and what surrounds it.

    All callables are called by every rank.
    """

    settings: Rlvr
    seed: int
    policy: Policy
    engine: Callable[[OlmoModel], RolloutEngine]  # over the model as it is now
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    prompts: Sequence[Prompt]
    order: PromptOrder
    stop_ids: frozenset[int]
    pad_id: int
    decode: Callable[[list[int]], str]
    log: Callable[[int, dict[str, Any]], None]  # the numbers of a step
    sample: Callable[[int, dict[str, Any]], None]  # a response as text
    save: Callable[[dict[str, int]], None]  # the trainer's state, to resume from
    stopping: Callable[[], bool]  # whether to save and end now, the same on every rank
    applied: int = 0  # optimizer steps so far


class RLBackend(Protocol):
    """A trainer. NeMo-Aligner's is the one that is built (`rlvr.nemo`)."""

    def fit(self, job: Job, state: dict[str, int] | None) -> dict[str, int]:
        """Train to the job's number of steps, or until it is told to stop; returns its state.

        `state` is what `job.save` was last given, to go on from.
        """
        ...
