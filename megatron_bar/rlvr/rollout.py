"""A rollout: the responses of one step, as the tensors that the step learns from.

B responses, those to one prompt next to each other; S tokens of the longest sequence, T = S - 1,
where place t holds what is said of token t + 1. A rollout has these keys, NeMo-Aligner's where it
has one for the thing, so that the functions here take the batches of every backend:

    response_tokens   [B, S]  a prompt and the response to it, padded on the right; the turns of an
                              environment are a part of the response
    prompt_lengths    [B]
    response_lengths  [B]     of both together
    is_end            [B]     whether the response came to its end; False where it was cut
    prompt_ids        [B]     the prompt, by number
    response_mask     [B, T]  1 where the policy's own tokens are said, 0 elsewhere
    rollout_logprobs  [B, T]  of the policy's own tokens, as they were sampled
    given_rewards     [B]     what environments gave; -1 where the verifier scores the last reply
    rewards           [B]     what the verifiers or environments found, from 0 to 1
    logprobs          [B, T]  of the policy in training, before the step's first update
    entropy           [B, T]  of the distributions that these come from
    init_logprobs     [B, T]  of the policy at the stage's start; in steps that ask for them
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.rlvr.conversations import Answer
from megatron_bar.rlvr.policy import Rows

Rollout = dict[str, torch.Tensor]
_NOT_GIVEN = -1.0


def as_rollout(
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    answers: Sequence[Answer],
    pad_id: int,
) -> dict[str, torch.Tensor]:
    """`answers` to `prompts`, whose `numbers` are given, as the first eight keys of a rollout."""
    device = torch.cuda.current_device()
    whole = [[*prompt, *answer.tokens] for prompt, answer in zip(prompts, answers)]
    of_prompt = [[0.0] * (len(prompt) - 1) for prompt in prompts]
    return {
        "response_tokens": pad_right(whole, pad_id, torch.int64),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts], device=device),
        "response_lengths": torch.tensor([len(row) for row in whole], device=device),
        "is_end": torch.tensor([answer.stopped for answer in answers], device=device),
        "prompt_ids": torch.tensor(numbers, device=device),
        "response_mask": pad_right(
            [[*zeros, *answer.own] for zeros, answer in zip(of_prompt, answers)], 0, torch.float32
        ),
        "rollout_logprobs": pad_right(
            [zeros + answer.logprobs for zeros, answer in zip(of_prompt, answers)],
            0.0,
            torch.float32,
        ),
        "given_rewards": torch.tensor(
            [_NOT_GIVEN if answer.reward is None else answer.reward for answer in answers],
            device=device,
        ),
    }


def pad_right(rows: Sequence[Sequence[float]], pad: float, dtype: torch.dtype) -> torch.Tensor:
    """Rows of unlike length as one tensor, on the device that computes."""
    padded = torch.full((len(rows), max(map(len, rows))), pad, dtype=dtype)
    for row, values in zip(padded, rows):
        row[: len(values)] = torch.tensor(values, dtype=dtype)
    return padded.to(torch.cuda.current_device())


def replies(mask_BT: torch.Tensor) -> torch.Tensor:
    """`[B, T] -> [B]`: how often the policy begins to speak."""
    before_BT = torch.nn.functional.pad(mask_BT, (1, -1))
    return (mask_BT > before_BT).sum(-1)


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
        batches.append(
            {
                name: torch.cat(
                    [value[indices], value.new_zeros(block - len(indices), *value.shape[1:])]
                )
                for name, value in rows.items()
            }
        )
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
