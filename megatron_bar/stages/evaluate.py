"""`evaluate`: one model's answers to held-out items, scored, and how it routes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_bar.data.chat_format import load_chat_format
from megatron_bar.evaluation.model import evaluate
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Evaluate, Source
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.context import Context, evaluation_of, sources


def run(context: Context) -> dict[str, Any]:
    settings, checkpoint = context.stage.settings, context.checkpoint("checkpoint")
    scores = evaluate(
        checkpoint, {task: sources(entries) for task, entries in settings["tasks"].items()},
        evaluation_of(context.stage), load_chat_format(checkpoint, settings["chat_template"]),
        context.stage.layout, settings["seed"], context.stage.name.removeprefix("evaluate/"),
        context.folder,
    )
    return {"summary": ", ".join(f"{task} {score:.2f}" for task, score in scores.items())}


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
    """As a rank of a job of its own: what the stage does, for any checkpoint, into `folder`.

    Results call it `name`.
    """
    with process_groups(layout, seed):
        evaluate(checkpoint, tasks, settings, load_chat_format(checkpoint, template), layout, seed,
                 name, folder)


def layout(context: Context) -> Layout:
    """The stage's layout, as far as the model's experts can be spread over it."""
    model = ModelConfig.load(context.checkpoint("checkpoint"))
    return context.stage.layout.fitted(model.num_experts)
