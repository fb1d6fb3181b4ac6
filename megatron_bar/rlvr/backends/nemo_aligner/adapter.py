"""A learner as NeMo-Aligner's trainer asks for it: a model, an optimizer, data and rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core import parallel_state
from nemo_aligner.models.alignable_interface import AlignableGenerativeInterface

from megatron_bar.rlvr.learner import Learner, Numbers
from megatron_bar.rlvr.policy import Update
from megatron_bar.rlvr.rewards import PendingRewards
from megatron_bar.rlvr.rollout import Rollout

Batch = dict[str, torch.Tensor]


class PolicyAdapter(AlignableGenerativeInterface):
    """The trainer's `model`: generates, tells log-probabilities, computes gradients."""

    update: Update  # whose gradients were computed last
    entropy_BT: torch.Tensor  # where log-probabilities were asked last

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.tokenizer = SimpleNamespace(eos_id=learner.pad_id, ids_to_text=learner.decode)

    def prepare_for_inference(self) -> None:
        """Nothing: `generate` and `gradients` change the model's mode by themselves."""

    finish_inference = prepare_for_training = finish_training = prepare_for_inference
    prepare_for_training_step = finish_training_step = prepare_for_inference

    def infer(self, batch: Batch) -> Batch:
        return self.learner.generate([tuple(pair) for pair in batch["text"].tolist()])

    def get_inference_log_probs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        scored = self.learner.score(tokens_BS)
        self.entropy_BT = scored.entropy_BT
        return scored.logprobs_BT

    def get_init_policy_logprobs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        return self.learner.reference_logprobs(tokens_BS)

    def get_loss_and_metrics(self, batch: Batch, forward_only: bool) -> tuple[float, dict]:
        assert not forward_only
        self.update = self.learner.gradients(batch)
        return self.update.loss, {}


class OptimizerAdapter:
    """Megatron's optimizer and schedule, which go on together, as the trainer steps them."""

    def __init__(self, model: PolicyAdapter, log: StepLog) -> None:
        self.model = model
        self.log = log
        self.param_groups = model.learner.optimizer.param_groups

    def zero_grad(self) -> None:
        self.model.learner.optimizer.zero_grad()

    def step(self) -> None:
        self.log.numbers |= self.model.learner.apply(self.model.update)


class PromptLoader:
    """The samples that a data-parallel rank is asked for in one rollout, as the trainer's data.

    A sample is a prompt's number and its own; two columns of the tensor that the trainer calls
    "text".
    """

    drop_last = True

    def __init__(self, learner: Learner) -> None:
        settings = learner.settings
        self.learner = learner
        self.dataset = self
        self.batch_sampler = self
        self.global_batch_size = settings.rows_per_step
        data_ranks = parallel_state.get_data_parallel_world_size()
        self.micro_batch_size = self.global_batch_size // data_ranks
        self.total_samples = settings.total_steps * self.global_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        yield self.learner.asked()

    def __getitem__(self, sample: tuple[int, int]) -> tuple[int, int]:
        return sample

    def collate(self, samples: Sequence[tuple[int, int]]) -> Batch:
        return {"text": torch.tensor(samples, device=torch.cuda.current_device())}


class RewardAdapter:
    """The trainer's reward model."""

    def __init__(self, learner: Learner) -> None:
        self.rewards = learner.rewards

    def infer_rm(self, rollout: Rollout) -> _Column:
        return _Column(self.rewards.score(rollout))


class _Column:
    def __init__(self, pending: PendingRewards) -> None:
        self.pending = pending

    def result(self) -> torch.Tensor:
        """`[B, 1]`."""
        return self.pending.result()[:, None]


class StepLog:
    """The trainer's `logger`, which keeps none of its own numbers.

    `numbers` is what a step has to log so far: the learner's, which `trainer` puts there.
    """

    def __init__(self) -> None:
        self.numbers: Numbers = {}

    def log_metrics(self, metrics: dict[str, Any], step: int, prefix: str) -> None:
        """Nothing: the learner says all that is logged."""

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: upstream's table of samples grows without end; the learner keeps them."""

    def finalize(self) -> None:
        """Nothing is left open."""

    def of_step(self) -> Numbers:
        """The metrics of the step that has ended."""
        numbers, self.numbers = self.numbers, {}
        return numbers
