"""A rollout: the responses of one step, as the tensors that the step learns from.

B responses, those to one prompt next to each other; S tokens of the longest sequence, T = S - 1,
where place t holds what is said of token t + 1. A rollout has these keys, NeMo-Aligner's where it
has one for the thing, so that the functions here take the batches of every backend:

    response_tokens   [B, S]  a prompt and the response to it, padded on the right
    prompt_lengths    [B]
    response_lengths  [B]     of both together
    is_end            [B]     whether the response came to its end; False where it was cut
    prompt_ids        [B]     the prompt, by number
    rollout_logprobs  [B, T]  of the response's tokens, as they were sampled
    rewards           [B]     what the verifiers found, from 0 to 1
    logprobs          [B, T]  of the policy in training, before the step's first update
    entropy           [B, T]  of the distributions that these come from
    init_logprobs     [B, T]  of the policy at the stage's start; in steps that ask for them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.generation.engine import Response
from megatron_bar.rlvr.policy import Rows

Rollout = Mapping[str, torch.Tensor]


def as_rollout(
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    responses: Sequence[Response],
    pad_id: int,
) -> dict[str, torch.Tensor]:
    """`responses` to `prompts`, whose `numbers` are given, as the first six keys of a rollout."""
    device = torch.cuda.current_device()
    whole = [[*prompt, *response.tokens] for prompt, response in zip(prompts, responses)]
    sampled_at = [[0.0] * (len(p) - 1) + r.logprobs for p, r in zip(prompts, responses)]
    return {
        "response_tokens": pad_right(whole, pad_id, torch.int64),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts], device=device),
        "response_lengths": torch.tensor([len(row) for row in whole], device=device),
        "is_end": torch.tensor([response.stopped for response in responses], device=device),
        "prompt_ids": torch.tensor(numbers, device=device),
        "rollout_logprobs": pad_right(sampled_at, 0.0, torch.float32),
    }


def pad_right(
    rows: Sequence[Sequence[float]], pad: float, dtype: torch.dtype
) -> torch.Tensor:
    """Rows of unlike length as one tensor, on the device that computes."""
    padded = torch.full((len(rows), max(map(len, rows))), pad, dtype=dtype)
    for row, values in zip(padded, rows):
        row[: len(values)] = torch.tensor(values, dtype=dtype)
    return padded.to(torch.cuda.current_device())


def response_mask(rollout: Rollout) -> torch.Tensor:
    """`[B, T]`: 1 where a response's token is said, 0 at the prompt and the padding."""
    tokens_BS = rollout["response_tokens"]
    places_T = torch.arange(1, tokens_BS.shape[1], device=tokens_BS.device)
    in_response_BT = (places_T >= rollout["prompt_lengths"][:, None]) & (
        places_T < rollout["response_lengths"][:, None])
    return in_response_BT.float()


def optimizer_batches(
    rows: Rows, groups: torch.Tensor, samples: int, global_batch_size: int
) -> list[Rows]:
    """This data-parallel rank's share of each optimizer step: blocks of equal size of `rows`.

    `groups`, by number, are the prompts to learn from, of `samples` rows each. They are dealt out
    to the optimizer steps, of `global_batch_size` rows, and those of a step to the ranks, so that
    the steps are the same in every layout. What a block lacks is rows without a token to learn.
    """
    rank = parallel_state.get_data_parallel_rank()
    ranks = parallel_state.get_data_parallel_world_size()
    block = global_batch_size // ranks
    members = torch.arange(samples, device=groups.device)
    batches = []
    for of_step in groups.tensor_split(len(rows["tokens"]) // global_batch_size):
        mine = of_step.tensor_split(ranks)[rank]
        indices = (mine[:, None] * samples + members).flatten()
        batches.append({
            name: torch.cat([value[indices],
                             value.new_zeros(block - len(indices), *value.shape[1:])])
            for name, value in rows.items()
        })
    return batches


def without_empty_ends(rows: Rows, micro_batch_size: int) -> Rows:
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
        "advantages": rows["advantages"][:count, :columns],
    }


def _end(used: torch.Tensor) -> torch.Tensor:
    """The place after the last True."""
    places = torch.arange(1, len(used) + 1, device=used.device)
    return (places * used).max()
