"""NeMo-Aligner's REINFORCE trainer, with what it gets wrong put right by overriding.

- Its `chunk` gives every data-parallel rank the whole global batch, so that d ranks take d times
  the optimizer steps on the same data. Here the batch is shared out after the advantages are known,
  by whole groups, and the number of optimizer steps is that of the settings at any layout.
- It counts responses as prompts, and hands that number to the sampler as its offset. Here
  `consumed_samples` counts prompts, and the order of prompts keeps its own place.
- It compares restored integers through float32, exact to 2 ** 24 only.
- Its loss is for one update a rollout, without a ratio; the clipped one is in `objective`.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from nemo_aligner.algorithms.reinforce import ReinforceTrainer
from nemo_aligner.utils.ppo_utils import calculate_kl_penalty, create_mask
from nemo_aligner.utils.utils import masked_mean

from megatron_bar.rlvr.backend import Job
from megatron_bar.rlvr.objective import lesson
from megatron_bar.rlvr.settings import asks_reference

Rollout = dict[str, torch.Tensor]


class BarReinforceTrainer(ReinforceTrainer):
    """See the module's text. `job` is what the trainer works on; the rest is as upstream."""

    def __init__(self, job: Job, **upstream: Any) -> None:
        self.job = job
        super().__init__(**upstream)

    def generate_rollouts(self) -> tuple[Rollout, dict, dict]:
        self.model.step = self.step
        self.compute_init_policy_kl = asks_reference(self.job.settings, self.step + 1)
        return super().generate_rollouts()

    def compute_rollout_metrics(self, rollout: Rollout) -> dict[str, Any]:
        """Upstream's, of the global batch; `rollout_size`, which it adds to the consumed, counts
        prompts."""
        metrics = super().compute_rollout_metrics(rollout)
        metrics["truncated"] = 1 - rollout["is_end"].float().mean().item()
        self._log_by_verifier(rollout, metrics)
        metrics["rollout_size"] = self.job.settings.prompts_per_step
        return metrics

    def _log_by_verifier(self, rollout: Rollout, metrics: dict[str, Any]) -> None:
        """Each verifier's mean reward, and the first of the responses it scored as text."""
        prompts = [self.job.prompts[i] for i in rollout["prompt_ids"].tolist()]
        verifiers = [prompt.verifier for prompt in prompts]
        for name in sorted(set(verifiers)):
            of_it = torch.tensor([verifier == name for verifier in verifiers])
            metrics[f"reward/{name}"] = rollout["rewards"][of_it].mean().item()
            first = verifiers.index(name)
            start, end = (int(rollout[f"{what}_lengths"][first]) for what in ("prompt", "response"))
            self.job.sample(self.step + 1, {
                "verifier": name, "prompt": prompts[first].text,
                "response": self.job.decode(rollout["response_tokens"][first, start:end].tolist()),
                "reward": rollout["rewards"][first].item(),
            })

    def generate_reinforce_data(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Advantages over the global batch, then this rank's share of each optimizer step."""
        logprobs_BT = rollout["logprobs"]
        mask_BT = create_mask(logprobs_BT, rollout["prompt_lengths"], rollout["response_lengths"])
        metrics = self._token_metrics(rollout, mask_BT)
        kl_B = None
        if self.compute_init_policy_kl:
            kl_BT = calculate_kl_penalty(
                logprobs_BT, rollout["init_logprobs"], self.cfg.use_absolute_kl
            )
            kl_B = masked_mean(kl_BT, mask_BT, dim=-1)
            metrics["kl"] = kl_B.mean().item()
        found = lesson(rollout["rewards"], kl_B, mask_BT, rollout["is_end"], self.job.settings)
        order = self.job.order
        asked = order.advance(self.job.settings.prompts_per_step)
        order.rest([prompt for prompt, solved in zip(asked, found.solved_G.tolist()) if solved])
        metrics |= {"groups_dropped": 1 - len(found.groups) / len(asked),
                    "prompts_resting": len(order.resting)}
        rows = {"response_tokens": rollout["response_tokens"], "mask": found.mask_BT,
                "old_logprobs": logprobs_BT, "advantages": found.advantages_B}
        return self._share(rows, found.groups), metrics

    def _token_metrics(self, rollout: Rollout, mask_BT: torch.Tensor) -> dict[str, float]:
        gap_BT = (rollout["logprobs"] - rollout["rollout_logprobs"]).abs() * mask_BT
        return {
            "entropy": masked_mean(self.model.entropy_BT, mask_BT).item(),
            "rollout_logprob_gap": masked_mean(gap_BT, mask_BT).item(),
            "rollout_logprob_gap_max": gap_BT.max().item(),
        }

    def _share(self, rows: Rollout, groups: torch.Tensor) -> Rollout:
        """The rows of this data-parallel rank, one block of equal size an optimizer step.

        `groups` (those that teach something, in the order they were asked) are dealt out to the
        optimizer steps, and each step's to the ranks. What a block lacks is rows without tokens to
        learn.
        """
        samples = self.job.settings.samples_per_prompt
        rank = parallel_state.get_data_parallel_rank()
        ranks = parallel_state.get_data_parallel_world_size()
        block = self.cfg.model_gbs // ranks
        steps = self.job.settings.prompts_per_step * samples // self.cfg.model_gbs
        shared = {name: [] for name in rows}
        for of_step in groups.tensor_split(steps):
            mine = of_step.tensor_split(ranks)[rank]
            members = torch.arange(samples, device=mine.device)
            indices = (mine[:, None] * samples + members).flatten()
            for name, value in rows.items():
                part = value[indices]
                filler = value.new_zeros(block - len(part), *value.shape[1:])
                shared[name].append(torch.cat([part, filler]))
        return {name: torch.cat(parts) for name, parts in shared.items()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]
        self.consumed_samples = state["consumed_samples"]
        self.reinforce_optimization_step = state["reinforce_optimization_step"]
        self.set_max_steps()
