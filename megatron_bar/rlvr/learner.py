"""The policy of an RLVR stage in training, and what a step does to it.

Backends (`rlvr.backends`) call this in the order of their loops; what two of them would do alike
stands here or in the modules that this one calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.checkpoints.number_types import type_name
from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.generation.probe import Probe
from megatron_bar.generation.served_policy import ServedPolicy
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.conversations import Answer
from megatron_bar.rlvr.generator import Generator
from megatron_bar.rlvr.objective import (
    compute_advantages,
    importance_weights,
    kl_to_reference,
    masked_mean,
)
from megatron_bar.rlvr.policy import Policy, Rows, Scored, Update
from megatron_bar.rlvr.prompts import Asked, Prompt, PromptOrder
from megatron_bar.rlvr.rewards import Rewards
from megatron_bar.rlvr.rollout import (
    Rollout,
    as_rollout,
    optimizer_batches,
    pad_right,
    replies,
    without_empty_ends,
)
from megatron_bar.rlvr.settings import asks_reference, reference_share
from megatron_bar.rlvr.step_seconds import StepSeconds
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stopping import CutShort, StopAtStep
from megatron_bar.training.metrics import Metrics
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.profiling import StepProfile
from megatron_bar.training.resume import Progress, ResumePoints
from megatron_bar.training.setup import set_up
from megatron_bar.training.step_lines import StepLines
from megatron_bar.training.waiting import Waiting

SAMPLES_FILE = "samples.jsonl"
# What servers are asked to prove that they have the trainer's weights.
_PROBE_ROWS, _PROBE_TOKENS = 8, 256
Numbers = dict[str, Any]  # what is logged of a step, by name


@dataclass
class RlvrProgress(Progress):
    """Progress of the stage; `step` counts rollouts."""

    applied: int = 0  # optimizer steps
    order: dict[str, Any] = field(default_factory=dict)  # of the prompts

    @property
    def updates(self) -> int:
        return self.applied


class Learner:
    """A policy that learns from its own answers to prompts. All ranks call its methods together.

    It has the state of the last resume point, if there is one, and steps go on from there.
    """

    def __init__(
        self,
        run: ModelRun,
        settings: Rlvr,
        prompts: Sequence[Prompt],
        chat_format: ChatFormat,
        stop: StopAtStep,
    ) -> None:
        self.run, self.settings, self.prompts = run, settings, prompts
        if chat_format.pad_id is None:
            raise BarError(f"{run.label}: the tokenizer has neither a padding nor an end token")
        self.pad_id, self.stop_ids = chat_format.pad_id, chat_format.stop_ids
        self.decode = chat_format.tokenizer.decode
        self.stop = stop
        self.stopped: str | None = None  # why it ends before its last step
        # While servers generate, and verifiers finish, the devices that train have nothing to do.
        # An environment is a part of the rollout.
        self.seconds = StepSeconds(
            waiting=frozenset(("verification", "rollout" if settings.served else "environment"))
        )
        self.rewards = Rewards(prompts, self.decode, settings, self.seconds)
        updates = settings.total_steps * (settings.rows_per_step // settings.global_batch_size)
        setup = set_up(run, settings, updates)
        self.optimizer, self.schedule = setup.optimizer, setup.schedule
        self.budget = setup.budget
        self._waiting = Waiting(setup.wrapped, setup.model.config)
        if settings.fp32_lm_head:
            setup.model.compute_logits_in_fp32()
        self.policy = Policy(setup.wrapped, settings.micro_batch_size, settings.temperature)
        self.served: ServedPolicy | None = None
        if settings.served:
            self.served = ServedPolicy(run, settings, type_name(setup.dtype))
        if reference_share(settings):
            self.policy.keep_start()
        self.points = ResumePoints(run, setup, settings, RlvrProgress)
        self.points.check_disk_space()
        self.progress: RlvrProgress = self.points.load()
        self.order = PromptOrder(len(prompts), run.seed)
        if self.step:
            self.order.restore(self.progress.order)
        self.generator = Generator(
            run,
            settings,
            prompts,
            chat_format,
            self.policy,
            self.served,
            self._probe,
            self.rewards.failures,
            self.seconds,
        )
        self._due: Asked | None = None  # by the step under way, where that is known
        self._following: Asked | None = None  # by the next, which servers answer
        self.reward = float("nan")  # mean of the last step
        self._learned = False  # whether an update from the last rollout had tokens

    @property
    def step(self) -> int:
        """The steps that are done."""
        return self.progress.step

    @property
    def asks_reference(self) -> bool:
        """Whether the next step asks what the policy said at the stage's start."""
        return asks_reference(self.settings, self.step + 1)

    @property
    def due(self) -> Asked:
        """The prompts of the step under way."""
        if self._due is None:
            self._due = self.order.peek(self.settings.prompts_per_step)
        return self._due

    def asked(self) -> list[tuple[int, int]]:
        """The prompts that this data-parallel rank answers next, each with its sample's number.

        All ranks have as many; the samples of a prompt may be on two of them.
        """
        return self._share(self.due)

    def _share(self, asked: Asked) -> list[tuple[int, int]]:
        samples = range(self.settings.samples_per_prompt)
        pairs = [(prompt, sample) for prompt in asked.prompts for sample in samples]
        share = len(pairs) // parallel_state.get_data_parallel_world_size()
        first = parallel_state.get_data_parallel_rank() * share
        return pairs[first : first + share]

    def generate(self, asked: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """This rank's part of a rollout: sampled by the seed, the step, prompt and sample alone.

        Raises CutShort, on all ranks, where the stage was asked to stop meanwhile.
        """
        settings = self.settings
        if settings.rollouts_ahead and self.step + 1 < settings.total_steps:
            self._following = self.order.peek(settings.prompts_per_step, after=self.due)
        following = self._share(self._following) if self._following else None
        answers: list[Answer] = []
        # Ranks that generate by themselves may leave at other times.
        with self.seconds.of("rollout"), contextlib.suppress(CutShort):
            answers = self.generator.answers(asked, self.step, following)
        self._leave_if_asked()
        prompts = [prompt for prompt, _ in asked]
        return as_rollout(
            [self.prompts[prompt].ids for prompt in prompts], prompts, answers, self.pad_id
        )

    def _leave_if_asked(self) -> None:
        """Give the step up where a rank was asked to stop at once: what follows takes long."""
        if self.stop.reason_on_any_rank(urgent=True):
            raise CutShort

    def give_up_step(self) -> None:
        """Stop within a step of which nothing was learned; to the same bits it is taken later."""
        self.stopped = self.stop.reason_on_any_rank()
        self._save()

    def _save(self) -> None:
        self.progress.order = self.order.state()
        self.points.save(self.progress)

    def _probe(self) -> Probe:
        """What the policy says now of the beginnings of the first prompts."""
        rows = [prompt.ids[:_PROBE_TOKENS] for prompt in self.prompts[:_PROBE_ROWS]]
        tokens_BS = pad_right(rows, self.pad_id, torch.int64)

        def logprobs(rows_BS: torch.Tensor) -> torch.Tensor:
            return self.policy.score(rows_BS, temperature=1.0).logprobs_BT

        said = self._shared_out(logprobs, tokens_BS).tolist()
        return Probe(rows, [of_row[: len(row) - 1] for row, of_row in zip(rows, said)])

    def score(self, tokens_BS: torch.Tensor) -> Scored:
        """Log-probabilities of the policy for a whole rollout's tokens."""

        def both(rows_BS: torch.Tensor) -> torch.Tensor:
            scored = self.policy.score(rows_BS)
            return torch.stack([scored.logprobs_BT, scored.entropy_BT], dim=-1)

        with self.seconds.of("logprobs"):
            return Scored(*self._shared_out(both, tokens_BS).unbind(-1))

    def reference_logprobs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the reference policy, the stage's start, for the same tokens."""
        with self.seconds.of("reference"):
            return self._shared_out(self.policy.reference_logprobs, tokens_BS)

    def _shared_out(
        self, compute: Callable[[torch.Tensor], torch.Tensor], tokens_BS: torch.Tensor
    ) -> torch.Tensor:
        """`compute` of all rows, of which each data-parallel rank computes its share."""
        group = parallel_state.get_data_parallel_group()
        unit = self.policy.micro_batch_size * group.size()
        count = len(tokens_BS)
        padded = torch.nn.functional.pad(tokens_BS, (0, 0, 0, -count % unit), value=self.pad_id)
        mine = compute(padded.chunk(group.size())[group.rank()]).contiguous()
        shares = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(shares, mine, group=group)
        return torch.cat(shares)[:count]

    def describe(self, rollout: Rollout) -> Numbers:
        """The metrics of a whole rollout; a response of each verifier is kept as text."""
        rewards_B, mask_BT = rollout["rewards"], rollout["response_mask"]
        numbers = {
            "reward": rewards_B.mean().item(),
            "response_length": mask_BT.sum(-1).mean().item(),
            "truncated": 1 - rollout["is_end"].float().mean().item(),
            "verifier_failures": self.rewards.failed(),
            "prompts": (self.step + 1) * self.settings.prompts_per_step,
        }
        if self.generator.environments:
            numbers["turns"] = replies(mask_BT).float().mean().item()
        prompts = [self.prompts[number] for number in rollout["prompt_ids"].tolist()]
        verifiers = [prompt.verifier for prompt in prompts]
        for name in sorted(set(verifiers)):
            of_it = torch.tensor([verifier == name for verifier in verifiers])
            numbers[f"reward/{name}"] = rewards_B[of_it].mean().item()
            first = verifiers.index(name)
            start, end = rollout["prompt_lengths"][first], rollout["response_lengths"][first]
            self._keep_sample(
                {
                    "verifier": name,
                    "prompt": prompts[first].text,
                    "response": self.decode(rollout["response_tokens"][first, start:end].tolist()),
                    "reward": rewards_B[first].item(),
                }
            )
        return numbers

    def prepare_updates(self, rollout: Rollout) -> tuple[list[Rows], Numbers]:
        """This rank's rows of each optimizer step, with their advantages; and what there is to log.

        The order of prompts moves on: those that are solved rest. From here on a step is taken to
        its end; CutShort is raised before, on all ranks, where the stage was asked to stop.
        """
        self._leave_if_asked()
        self._learned = False
        settings, logprobs_BT = self.settings, rollout["logprobs"]
        mask_BT = rollout["response_mask"]
        gap_BT = (logprobs_BT - rollout["rollout_logprobs"]).abs() * mask_BT
        numbers = {
            "entropy": masked_mean(rollout["entropy"], mask_BT).item(),
            "rollout_logprob_gap": masked_mean(gap_BT, mask_BT).item(),
            "rollout_logprob_gap_max": gap_BT.max().item(),
        }
        if not settings.rollouts_ahead:  # whose gap has the update of a step in it
            self._check_gap(numbers["rollout_logprob_gap"])
        if self.served is not None:
            numbers |= self.served.numbers
        kl_B = None
        if "init_logprobs" in rollout:
            kl_B = kl_to_reference(logprobs_BT, rollout["init_logprobs"], mask_BT)
            numbers["kl"] = kl_B.mean().item()
        found = compute_advantages(rollout["rewards"], kl_B, mask_BT, rollout["is_end"], settings)
        asked = self.due
        self.order.pass_by(asked)
        self._due, self._following = self._following, None
        self.order.rest(
            [prompt for prompt, solved in zip(asked.prompts, found.solved_G.tolist()) if solved]
        )
        numbers |= {
            "groups_dropped": 1 - len(found.groups) / len(asked.prompts),
            "prompts_resting": len(self.order.resting),
        }
        advantages_BT = found.advantages_B[:, None].expand_as(logprobs_BT)
        if (cap := settings.truncated_importance_sampling) is not None:
            weights_BT = importance_weights(logprobs_BT, rollout["rollout_logprobs"], cap)
            advantages_BT = advantages_BT * weights_BT
            numbers["importance_weight"] = masked_mean(weights_BT, mask_BT).item()
            numbers["importance_capped"] = masked_mean((weights_BT == cap).float(), mask_BT).item()
        rows = {
            "tokens": rollout["response_tokens"],
            "mask": found.mask_BT,
            "old_logprobs": logprobs_BT,
            "advantages": advantages_BT,
        }
        return optimizer_batches(
            rows, found.groups, settings.samples_per_prompt, settings.global_batch_size
        ), numbers

    def _check_gap(self, gap: float) -> None:
        limit = self.settings.max_rollout_logprob_gap
        if not gap <= limit:
            raise BarError(
                f"{self.run.label}: in step {self.step + 1} log-probabilities of rollout and "
                f"trainer are {gap:.2g} apart in the mean, more than max_rollout_logprob_gap "
                f"{limit:g}: the answers came from other weights, or are computed otherwise, and "
                "nothing was learned from them"
            )

    def gradients(self, rows: Rows) -> Update:
        """Compute the gradients of one optimizer step, which stay in the parameters' buffers."""
        with self.seconds.of("update"):
            self.optimizer.zero_grad()
            self.policy.wrapped.zero_grad_buffer()
            rows = without_empty_ends(rows, self.policy.micro_batch_size)
            return self.policy.update(rows, self.settings)

    def apply(self, update: Update) -> Numbers:
        """Take the optimizer step whose gradients were computed.

        Not where no token was left to learn from: momentum alone must not move the weights. Of such
        a one there is nothing to log, unless all of a rollout's are.
        """
        # Of the groups that lr_scale doesn't slow down.
        numbers = {"lr": max(group["lr"] for group in self.optimizer.param_groups)}
        if update.tokens or not self._learned:
            numbers |= {
                "loss": update.loss,
                "clip_fraction": update.clip_fraction,
                "ratio_error": update.ratio_error,
                "grad_norm": 0.0,
            }
        if update.tokens:
            with self.seconds.of("update"):
                _, norm, _ = self.optimizer.step()
            numbers["grad_norm"] = float(norm)
            self.progress.applied += 1
            self._learned = True
        self.schedule.step(1)
        return numbers

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep metrics and samples in the stage's folder, and show progress, in the block."""
        with contextlib.ExitStack() as stack:
            if self.served is not None:
                stack.callback(self.served.close)
            self._metrics = stack.enter_context(Metrics(self.run.folder, self.step, self.settings))
            if is_main():
                self._samples = stack.enter_context(
                    StepLines(self.run.folder / SAMPLES_FILE, self.step)
                )
            self._advance = stack.enter_context(progress(self.run.label, self.settings.total_steps))
            self._advance(self.step)
            self._profile = stack.enter_context(
                StepProfile(self.settings.profile, self.run.folder, self.run.label)
            )
            self._profile.reached(self.step)
            self.seconds.restart()
            yield

    def _keep_sample(self, sample: dict[str, Any]) -> None:
        if is_main():
            self._samples.add(self.step + 1, **sample)

    def end_step(self, numbers: Numbers) -> bool:
        """Log a step, and save if it is time to; whether to stop now, to go on later."""
        self.progress.step += 1
        self.reward = numbers["reward"]
        seconds = self.seconds.of_step()
        self._metrics.log(self.step, **numbers, **seconds, **self._waiting.metrics())
        self._profile.reached(self.step)
        self._advance(note=f"reward {self.reward:.3f}, waits {seconds['waiting_share']:.0%}")
        self.points.check()
        if self.step == self.settings.steps:
            return False
        self.stopped = self.stop.reason_on_any_rank()
        if self.stopped or self.points.due(self.step):
            self._save()
        self.seconds.restart()
        return self.stopped is not None
