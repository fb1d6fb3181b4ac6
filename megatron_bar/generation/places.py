"""The number of vLLM servers that there is room for on the GPUs of nodes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

from megatron_bar.runtime.errors import BarError


def server_gpus(options: Sequence[str]) -> int:
    """The GPUs of a server with these options. Raises BarError where a size is no number."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for short, what in (("-tp", "tensor"), ("-pp", "pipeline"), ("-dp", "data")):
        both = (f"--{what}-parallel-size", f"--{what}_parallel_size")
        parser.add_argument(short, *both, type=int, default=1)
    try:
        known, _ = parser.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise BarError(f"rollout_options: {error}") from None
    count = math.prod(vars(known).values())
    if count < 1:
        raise BarError("rollout_options: a server's parallel sizes must be 1 or more")
    return count


def places(nodes: int, node_gpus: int, options: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Name each server with these options that fits on `nodes`, and its GPUs on its node.

    Raises BarError where they don't fill a node evenly.
    """
    size = server_gpus(options)
    if nodes and node_gpus % size:
        raise BarError(
            f"rollout_nodes: servers of {size} GPUs, as rollout_options says, don't fill a node of "
            f"{node_gpus}; give a --tensor-parallel-size that divides {node_gpus}"
        )
    for node in range(nodes):
        for number in range(node_gpus // size):
            yield f"{node}-{number}", list(range(number * size, (number + 1) * size))
