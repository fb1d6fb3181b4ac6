"""Our policy, prompts, optimizer and rewards as NeMo-Aligner's trainer asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from nemo_aligner.models.alignable_interface import AlignableGenerativeInterface

from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.rlvr.backend import Job
from megatron_bar.rlvr.policy import Rows

Batch = dict[str, torch.Tensor]


def pad_right(
    rows: Sequence[Sequence[float]], pad: float, dtype: torch.dtype, width: int | None = None
) -> torch.Tensor:
    """Rows of unlike length as one tensor, on the device that computes."""
    width = width or max(len(row) for row in rows)
    padded = torch.full((len(rows), width), pad, dtype=dtype)
    for row, values in zip(padded, rows):
        row[: len(values)] = torch.tensor(values, dtype=dtype)
    return padded.to(torch.cuda.current_device())


class PolicyAdapter(AlignableGenerativeInterface):
    """The trainer's `model`: generates, tells log-probabilities, computes losses."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.policy = job.policy
        self.tokenizer = SimpleNamespace(eos_id=job.pad_id, ids_to_text=job.decode)
        self.step = 0  # the trainer's, which sampling is keyed by

    def prepare_for_inference(self) -> None:
        """`infer` changes the model's mode by itself, so that scoring runs as training does."""

    finish_inference = prepare_for_training = finish_training = prepare_for_inference

    def infer(self, batch: Batch) -> Batch:
        """Responses to a batch's prompts, with the log-probabilities they were sampled at."""
        settings = self.job.settings
        prompts = [
            row[:length].tolist() for row, length in zip(batch["text"], batch["length"])
        ]
        keys = zip(batch["prompt_ids"].tolist(), batch["sample_ids"].tolist())
        requests = [Request(p, (self.step, *key)) for p, key in zip(prompts, keys)]
        sampling = Sampling(
            settings.response_length, self.job.stop_ids, settings.temperature, self.job.seed
        )
        with self.policy.generating() as model:
            responses = self.job.engine(model).generate(requests, sampling)
        whole = [prompt + response.tokens for prompt, response in zip(prompts, responses)]
        # The log-probability of token t + 1 stands at place t.
        sampled_at = [[0.0] * (len(p) - 1) + r.logprobs for p, r in zip(prompts, responses)]
        device = batch["length"].device
        return {
            "response_tokens": pad_right(whole, self.job.pad_id, torch.int64),
            "response_lengths": torch.tensor([len(row) for row in whole], device=device),
            "prompt_lengths": batch["length"],
            "prompt_ids": batch["prompt_ids"],
            "is_end": torch.tensor([r.stopped for r in responses], device=device),
            "rollout_logprobs": pad_right(sampled_at, 0.0, torch.float32),
        }

    def get_inference_log_probs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the global batch; each data-parallel rank computes its share."""
        both = self._shared_out(self._logprobs_and_entropy, tokens_BS)
        self.entropy_BT = both[..., 1]
        return both[..., 0]

    def _logprobs_and_entropy(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        scored = self.policy.score(tokens_BS)
        return torch.stack([scored.logprobs_BT, scored.entropy_BT], dim=-1)

    def get_init_policy_logprobs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        return self._shared_out(self.policy.reference_logprobs, tokens_BS)

    def _shared_out(
        self, compute: Callable[[torch.Tensor], torch.Tensor], tokens_BS: torch.Tensor
    ) -> torch.Tensor:
        group = parallel_state.get_data_parallel_group()
        unit = self.policy.micro_batch_size * group.size()
        count = len(tokens_BS)
        padded = torch.nn.functional.pad(tokens_BS, (0, 0, 0, -count % unit), value=self.job.pad_id)
        mine = compute(padded.chunk(group.size())[group.rank()]).contiguous()
        shares = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(shares, mine, group=group)
        return torch.cat(shares)[:count]

    def prepare_for_training_step(self) -> None:
        self.policy.wrapped.zero_grad_buffer()

    def finish_training_step(self) -> None:
        """Megatron's schedule has reduced the gradients already."""

    def get_loss_and_metrics(self, batch: Batch, forward_only: bool) -> tuple[float, dict]:
        """Gradients of one optimizer step, left in the parameters' buffers."""
        assert not forward_only
        settings = self.job.settings
        rows = _without_empty_ends(
            {"tokens": batch["response_tokens"], "mask": batch["mask"],
             "old_logprobs": batch["old_logprobs"], "advantages": batch["advantages"]},
            self.policy.micro_batch_size,
        )
        update = self.policy.update(rows, settings.clip_low, settings.clip_high)
        self.tokens_in_step = update.tokens
        return update.loss, {
            "clip_fraction": update.clip_fraction, "ratio_error": update.ratio_error,
        }


def _without_empty_ends(rows: Rows, micro_batch_size: int) -> Rows:
    """`rows` without the micro-batches and the columns that are padding on every rank."""
    used_B = rows["mask"].any(-1)
    used_T = rows["mask"].any(0)
    ends = torch.stack([_end(used_B), _end(used_T)])
    dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
    count, columns = ends.tolist()
    count = -(-max(count, 1) // micro_batch_size) * micro_batch_size
    columns = max(columns, 1)
    return {
        "tokens": rows["tokens"][:count, : columns + 1],
        "mask": rows["mask"][:count, :columns],
        "old_logprobs": rows["old_logprobs"][:count, :columns],
        "advantages": rows["advantages"][:count],
    }


def _end(used: torch.Tensor) -> torch.Tensor:
    """The place after the last True."""
    places = torch.arange(1, len(used) + 1, device=used.device)
    return (places * used).max()


class OptimizerAdapter:
    """Megatron's optimizer, which clips by itself, as the trainer steps it."""

    def __init__(self, job: Job, model: PolicyAdapter) -> None:
        self.job = job
        self.model = model
        self.gradient_norm = 0.0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        # The trainer logs the first one's rate; groups may be slowed down by lr_scale.
        return sorted(self.job.optimizer.param_groups, key=lambda group: -group["lr"])

    def zero_grad(self) -> None:
        self.job.optimizer.zero_grad()

    def step(self) -> None:
        """An update, unless nothing was left to learn from: momentum alone must not move it."""
        if self.model.tokens_in_step == 0:
            return
        _, self.gradient_norm, _ = self.job.optimizer.step()
        self.job.applied += 1


class ScheduleAdapter:
    """The trainer steps it after each optimizer step, without saying by how much."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def step(self) -> None:
        self.job.schedule.step(1)


class PromptLoader:
    """The prompts of one rollout, each as often as it is sampled, a rank's share of them."""

    drop_last = True

    def __init__(self, job: Job) -> None:
        settings = job.settings
        self.job = job
        self.dataset = self
        self.batch_sampler = self
        self.global_batch_size = settings.rows_per_step
        data_ranks = parallel_state.get_data_parallel_world_size()
        self.micro_batch_size = self.global_batch_size // data_ranks
        self.total_samples = settings.steps * self.global_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        settings = self.job.settings
        chosen, _ = self.job.order.peek(settings.prompts_per_step)
        pairs = [(p, s) for p in chosen for s in range(settings.samples_per_prompt)]
        first = parallel_state.get_data_parallel_rank() * self.micro_batch_size
        yield pairs[first : first + self.micro_batch_size]

    def __getitem__(self, pair: tuple[int, int]) -> tuple[int, int]:
        return pair

    def collate(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        prompts, samples = zip(*pairs)
        ids = [self.job.prompts[p].ids for p in prompts]
        device = torch.cuda.current_device()
        return {
            "text": pad_right(ids, self.job.pad_id, torch.int64),
            "length": torch.tensor([len(row) for row in ids], device=device),
            "prompt_ids": torch.tensor(prompts, device=device),
            "sample_ids": torch.tensor(samples, device=device),
        }


class Rewards:
    """Scores responses while the policy computes their log-probabilities.

    Ranks of one model-parallel group hold the same responses: each scores its part of them.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pool = ThreadPoolExecutor(job.settings.verifiers_at_once)

    def infer_rm(self, rollout: Batch) -> _Pending:
        group = parallel_state.get_model_parallel_group()
        rows = list(zip(
            rollout["prompt_ids"].tolist(), rollout["response_tokens"].tolist(),
            rollout["prompt_lengths"].tolist(), rollout["response_lengths"].tolist(),
            rollout["is_end"].tolist(),
        ))
        tasks = [self.pool.submit(self._score, *row) for row in rows[group.rank()::group.size()]]
        return _Pending(tasks, len(rows), group)

    def _score(self, prompt: int, tokens: list[int], start: int, end: int, stopped: bool) -> float:
        if not stopped and self.job.settings.truncated == "zero":
            return 0.0
        response = self.job.decode(tokens[start : end - stopped])
        return self.job.prompts[prompt].score(response)


class _Pending:
    def __init__(self, tasks: list, count: int, group: dist.ProcessGroup) -> None:
        self.tasks, self.count, self.group = tasks, count, group

    def result(self) -> torch.Tensor:
        """`[B, 1]`, the same on every rank of the model-parallel group."""
        scores = torch.zeros(self.count, 1, device=torch.cuda.current_device())
        mine = torch.tensor([task.result() for task in self.tasks], device=scores.device)
        scores[self.group.rank()::self.group.size(), 0] = mine
        dist.all_reduce(scores, group=self.group)
        return scores
