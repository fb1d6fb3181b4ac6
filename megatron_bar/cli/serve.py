"""`serve`: vLLM's command for a model, and whether a server says what the model says."""

from __future__ import annotations

import argparse
import shlex

from megatron_bar.runtime.errors import BarError


def serve(args: argparse.Namespace) -> None:
    """Print the commands, or with --check compare a server with the model.

    Raises BarError for a server of another model.
    """
    from megatron_bar.api.serving import TOLERANCE, compare_served, serving_commands

    if args.check is None:
        for command in serving_commands(args.model, args.name, args.port, args.gpus):
            print(shlex.join(command))
        return

    from megatron_bar.api.model import load

    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    with load(args.model, dtype=args.dtype) as model:
        found = compare_served(model, args.check)
    told = (
        f"log-probabilities of {found.tokens} tokens are {found.mean:.2g} apart in the mean, "
        f"{found.largest:.2g} at most"
    )
    if not found.mean <= tolerance:
        raise BarError(
            f"{args.check} doesn't serve {args.model}: {told}, and the mean may be "
            f"{tolerance:g}; export the model again, and start the server anew"
        )
    print(f"{args.check} serves {args.model}: {told}")
