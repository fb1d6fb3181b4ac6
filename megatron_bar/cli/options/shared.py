"""The commands of a parser, and arguments that several of them take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_bar.cli.help_texts import EXAMPLES

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


class Commands:
    """The commands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser, dest: str, above: str = "") -> None:
        """`above`: the words before a command of this parser, as help_texts.EXAMPLES has them."""
        self._subparsers: Subparsers = parser.add_subparsers(
            dest=dest, required=True, metavar="COMMAND"
        )
        self._above = above

    def add(self, name: str, summary: str) -> argparse.ArgumentParser:
        """A command with its examples."""
        return self._subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n{EXAMPLES[self._above + name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def group(self, name: str, summary: str) -> Commands:
        """The commands that stand behind a word of their own."""
        parser = self._subparsers.add_parser(name, help=summary)
        return Commands(parser, f"{name}_command", f"{name} ")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="the recipe's file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="keys of the recipe, changed for this time",
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--yes", action="store_true", help="replace finished training without a question"
    )


def add_answering_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is loaded into this process to answer."""
    parser.add_argument(
        "model",
        help="a checkpoint, a stage's folder, a Hugging Face folder or OWNER/NAME of the hub",
    )
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help="olmo, tulu or a .jinja file (default: what it was trained with, or "
        "its tokenizer's own)",
    )
    add_dtype_to_compute(parser)


def add_dtype_to_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what it computes in (default: what it is stored in)",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a plan is made for."""
    parser.add_argument("--model", help="sizes to plan with, where the anchor isn't at hand")
    parser.add_argument(
        "--site",
        type=Path,
        metavar="PATH",
        help="site.yaml, whose `machine` says what the GPUs are and what was measured on them",
    )
    parser.add_argument("--gpu", help="what the GPUs are (default: the site's, else H100)")
    parser.add_argument("--memory", type=int, help="GiB of one GPU (default: the site's, else 80)")
    parser.add_argument(
        "--mfu",
        "--efficiency",
        dest="mfu",
        type=float,
        help="model FLOPs utilisation that training reaches, with its communication (default: "
        "worked out from what was measured)",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="cast the weights (default: as they are)",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="how many write at once (default: one for each half GiB, at most "
        "one a core and 16); the result is the same",
    )
