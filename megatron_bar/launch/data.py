"""`megatron-bar data`: make a recipe's data before it runs, and look at them."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_bar.data.batches import Batches, planned_steps
from megatron_bar.data.show import shown_documents
from megatron_bar.data.store import StoredDocuments
from megatron_bar.launch.check import check_writable
from megatron_bar.launch.stale import run_folder
from megatron_bar.launch.starts import start_tokenizer
from megatron_bar.methods import context_of, stage_graph
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import console, say
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.context import Context
from megatron_bar.stages.rows_stage import RowsStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.work.data import part_contexts, prepare, preview_rows


def prepare_data(recipe: Recipe, names: Sequence[str], processes: int | None) -> None:
    """Tokenize what the stages called `names` train on, or all that do, into the run's folder.

    Raises BarError if there is no such stage, no tokenizer yet, or something wrong with a source.
    """
    check_writable(run_folder(recipe))
    tokenizer = start_tokenizer(recipe)
    for stage in _stages(recipe, names):
        for part in part_contexts(_context(recipe, stage)):
            for name, folder in prepare(part, tokenizer, processes).items():
                stored = StoredDocuments(folder)
                say(
                    f"{stage.name}: {name}: {stored.tokens} tokens in {len(stored)} documents, "
                    f"{folder}"
                )


def show_data(recipe: Recipe, name: str, step: int, items: int) -> None:
    """Print the first documents that a stage reads at a step, counted from 1, and its packing.

    Raises BarError as `prepare_data` does, and for a step that the stage doesn't have.
    """
    if step < 1 or items < 1:
        raise BarError("step and items are counted from 1")
    check_writable(run_folder(recipe))
    (stage,) = _stages(recipe, [name])
    context, tokenizer = _context(recipe, stage), start_tokenizer(recipe)
    with process_groups(Layout()):
        rows = preview_rows(context, tokenizer)
        steps = planned_steps(context.stage.training, rows.per_epoch)
        if step > steps:
            raise BarError(f"{name} has {steps} steps; choose one of them")
        batches = Batches.of(rows, context.stage.training.global_batch_size, recipe.seed)
        batch = rows.take(batches.indices(step - 1))
    colour = console.color_system is not None
    legend = "green" if colour else "in brackets"
    say(f"{name}, step {step} of {steps}: {len(batch)} rows; tokens that carry loss are {legend}")
    for (heading, text), _ in zip(shown_documents(batch, tokenizer, colour), range(items)):
        console.print(heading)
        console.print(text)


def _context(recipe: Recipe, stage: Stage) -> Context:
    return context_of(recipe, run_folder(recipe), stage.name)


def _stages(recipe: Recipe, names: Sequence[str]) -> list[Stage]:
    stages = {stage.name: stage for stage in stage_graph(recipe) if isinstance(stage, RowsStage)}
    for name in names:
        if name not in stages:
            raise BarError(f"no stage {name!r} reads prepared data; there are {', '.join(stages)}")
    return [stages[name] for name in names or stages]
