"""Answers to prompts, shared among the data-parallel ranks, the same in every layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice

from megatron.core import parallel_state

from megatron_bar.generation.engine import Request, Response, RolloutEngine, Sampling
from megatron_bar.runtime.distributed import of_all_ranks


def answer_all(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    samples: int,
    sampling: Sampling,
    advance: Callable[[int], None] = lambda done: None,
) -> list[list[Response]]:
    """`samples` answers to each prompt, `[prompts][samples]`, on every rank.

    What is sampled depends on the seed, the prompt's number and the sample's alone. `advance` is
    told of what this rank has answered. All ranks call this.
    """
    keys = [(item, sample) for item in range(len(prompts)) for sample in range(samples)]
    mine = _share(keys, [len(prompts[item]) for item, _ in keys])
    requests = [Request(prompts[item], (item, sample)) for item, sample in mine]
    found = dict(zip(mine, engine.generate(requests, sampling, advance)))
    # Ranks of one model-parallel group hold the same answers.
    everyones = of_all_ranks(found if _speaks() else {})
    answers = {key: response for part in everyones for key, response in part.items()}
    return [[answers[item, sample] for sample in range(samples)] for item in range(len(prompts))]


def _share(keys: list[tuple[int, int]], lengths: list[int]) -> list[tuple[int, int]]:
    """This data-parallel rank's keys. Ranks step together, so each has as many.

    Keys are dealt out by length: batches of all ranks are then of like length. Where they don't
    come out even, some keys are answered twice, to the same words.
    """
    size = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    by_length = [key for _, key in sorted(zip(lengths, keys))]
    each = -(-len(keys) // size)
    return list(islice(cycle(by_length), each * size))[rank::size]


def _speaks() -> bool:
    """True on the rank that tells what its model-parallel group has answered."""
    return (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
    )
