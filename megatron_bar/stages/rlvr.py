"""`rlvr`: reinforcement learning with verifiable rewards, on prompts with references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.fields import PROMPTS
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.stage import Reading
from megatron_bar.stages.training_stage import TrainingStage

if TYPE_CHECKING:
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.rlvr.backends import Backend
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context

# What trains by default in BAR: all that branches share, attention included.
RLVR_GROUPS = (
    "expert.1",
    "router.1",
    "embeddings",
    "attention",
    "block_norms",
    "final_norm",
    "head",
)


@dataclass(frozen=True, kw_only=True)
class RlvrStage(TrainingStage):
    """Asks the prompts of one domain, or of all together."""

    training: Rlvr

    KIND = "rlvr"
    LABEL = "RLVR"
    FORM = PROMPTS

    def readings(self) -> Iterator[Reading]:
        for source in self.training.data:
            yield Reading(self.name, source, PROMPTS, self.training.prompt_length)

    def length_warning(self, model: ModelConfig) -> str | None:
        """A warning about answers that the model's positions cut short, else None.

        The published settings have 6,144 tokens and a model of 4,096 positions, so it is no fault.
        """
        positions, training = model.max_position_embeddings, self.training
        if training.row_length <= positions:
            return None
        return (
            f"answers end at the model's {positions} positions, with their prompts, so that an "
            f"answer to a prompt of {training.prompt_length} tokens has not all of "
            f"response_length {training.response_length}"
        )

    def check(self, model: ModelConfig, faults: Faults) -> None:
        from megatron_bar.checkpoints.hf import architecture
        from megatron_bar.rlvr.settings import check_settings

        super().check(model, faults)
        with faults.of(self.name):
            check_settings(self.training, self.layout)
        if self.training.served:  # which read exports
            with faults.of(self.name):
                architecture(model)

    def check_sources(self, faults: Faults) -> None:
        from megatron_bar.verifiers.environments import check_environment
        from megatron_bar.verifiers.registry import check_verifier

        super().check_sources(faults)
        for source in self.training.data:
            check_verifier(source, self.name, faults)
            check_environment(source, self.name, faults)

    def check_installed(self, faults: Faults) -> None:
        from megatron_bar.generation.vllm_process import find_vllm
        from megatron_bar.rlvr.backends import missing_backend

        if missing := missing_backend(self.training.backend):
            faults.add(missing, self.name)
        if self.training.rollout_python is not None:
            with faults.of(self.name):
                vllm = find_vllm(self.training.rollout_python)
                if vllm.on_cpu and self.training.rollout_sleep:
                    raise BarError(
                        "rollout_python has a vLLM for CPUs, which can't sleep; leave "
                        "rollout_sleep out"
                    )
        super().check_installed(faults)

    @property
    def server_nodes(self) -> int:
        return self.training.rollout_nodes

    def prepare(self) -> None:
        """Import what the backend needs, which has to come before the process groups."""
        super().prepare()
        self._backend.prepare()

    @property
    def preload(self) -> str | None:
        """A module for the server that ranks are forked from, if its backend has one."""
        return self._backend.PRELOAD

    @property
    def _backend(self) -> Backend:
        from megatron_bar.rlvr.backends import backend_of

        return backend_of(self.training.backend)

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.stages.work.rlvr import train_on_rewards

        return train_on_rewards(context)
