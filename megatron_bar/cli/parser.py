"""The parser of the command line; options/ has the words of its commands."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import megatron_bar
from megatron_bar.cli.help_texts import DESCRIPTION
from megatron_bar.cli.options.answers import add_answer_commands
from megatron_bar.cli.options.checkpoints import add_checkpoint_commands
from megatron_bar.cli.options.jobs import add_job_commands
from megatron_bar.cli.options.recipes import add_recipe_commands
from megatron_bar.cli.options.shared import Commands

# Options of which each is 1 or more.
COUNTS = ("jobs", "processes", "memory", "limit", "max_new_tokens", "port", "gpus", "every")


class _Versions(argparse.Action):
    """Ours, and those of what decides what comes out, as a report of a fault should have them."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print versions")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        names = ("torch", "megatron-core", "transformer-engine", "transformers", "nemo-aligner")
        words = [f"megatron-bar {megatron_bar.__version__}", f"Python {platform.python_version()}"]
        for name in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                words.append(f"{name} {importlib.metadata.version(name)}")
        print(", ".join(words))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "megatron-bar",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Versions)
    commands = Commands(parser, "command")
    add_recipe_commands(commands)
    add_job_commands(commands)
    add_checkpoint_commands(commands)
    add_answer_commands(commands)
    return parser
