"""NeMo-Aligner's REINFORCE trainer, with what it gets wrong put right by overriding.

- Its `chunk` gives every data-parallel rank the whole global batch, so that d ranks take d times
  the optimizer steps on the same data. Here the batch is shared out after the advantages are known,
  by whole groups, and the number of optimizer steps is that of the settings at any layout.
- It counts responses as prompts, and hands that number to the sampler as its offset. Here the
  order of prompts keeps its own place.
- It compares restored integers through float32, exact to 2 ** 24 only. Here the learner restores.
- Its loss is for one update a rollout, without a ratio; the clipped one is in `objective`.
"""

from __future__ import annotations

from typing import Any

import torch
from nemo_aligner.algorithms.reinforce import ReinforceTrainer

from megatron_bar.rlvr.learner import Learner
from megatron_bar.rlvr.rollout import Rollout


class BarReinforceTrainer(ReinforceTrainer):
    """See the module's text. `learner` is whom it trains; the rest is as upstream."""

    def __init__(self, learner: Learner, **upstream: Any) -> None:
        self.learner = learner
        super().__init__(**upstream)
        self.step = learner.step

    def generate_rollouts(self) -> tuple[Rollout, dict, dict]:
        self.compute_init_policy_kl = self.learner.asks_reference
        return super().generate_rollouts()

    def compute_rollout_metrics(self, rollout: Rollout) -> dict[str, Any]:
        """Upstream's are asked for by its loop; those of the learner are logged."""
        self.logger.numbers |= self.learner.describe(rollout)
        return super().compute_rollout_metrics(rollout)

    def generate_reinforce_data(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """This rank's rows of all optimizer steps, which upstream cuts apart again."""
        rollout["entropy"] = self.model.entropy_BT
        batches, numbers = self.learner.prepare_updates(rollout)
        self.logger.numbers |= numbers
        rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        # Upstream reads the number of rows under this name.
        return rows | {"response_tokens": rows["tokens"]}, {}
