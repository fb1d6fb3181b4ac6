"""Evaluation of any checkpoint, as the stage does it."""

from __future__ import annotations

from pathlib import Path

from megatron_bar.data.chat_format import load_chat_format
from megatron_bar.evaluation.model import evaluate
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout


def evaluate_checkpoint(
    checkpoint: Path,
    name: str,
    tasks: dict[str, list[Source]],
    settings: Evaluate,
    template: str | None,
    layout: Layout,
    seed: int,
    folder: Path,
) -> None:
    """Do the stage's work as a rank of a job of its own, for any checkpoint, into `folder`.

    Results call it `name`.
    """
    with process_groups(layout, seed):
        evaluate(
            checkpoint,
            tasks,
            settings,
            load_chat_format(checkpoint, template),
            layout,
            seed,
            name,
            folder,
        )
