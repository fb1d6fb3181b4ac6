"""A stage's data: its sources as tokens in the run's folder, and the rows it trains on.

Tokenized sources lie in runs/NAME/data, where stages share them; one that stands is used as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.batches import planned_steps
from megatron_bar.data.blend import BlendedRows
from megatron_bar.data.chat_format import named_template
from megatron_bar.data.joined import JoinedRows
from megatron_bar.data.mixture import check_mixture, natural_size, picks, shares
from megatron_bar.data.packing import PackedDocuments, pack
from megatron_bar.data.pairs import PairRows
from megatron_bar.data.rows import Rows
from megatron_bar.data.sources import open_source
from megatron_bar.data.store import (
    StoredDocuments,
    store_conversations,
    store_preferences,
    store_texts,
)
from megatron_bar.recipe.fields import CHATS, PAIRS, TEXTS
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import from_main, is_main
from megatron_bar.stages.context import Context
from megatron_bar.stages.rows_stage import RowsStage

# Folders of runs/NAME/data with tokenized sources, by the form that these are read in.
_FOLDER_OF = {TEXTS: "texts", CHATS: "chats", PAIRS: "pairs"}
STORES = tuple(_FOLDER_OF.values())
_ORDERS = "orders"
_PACKED, _VALIDATION, _FOLDERS = "packed", "validation", "data.json"


Folders = Mapping[str, Path]  # of the tokenized sources, by their names


def stage_rows(
    context: Context[RowsStage],
    tokenizer: PreTrainedTokenizerBase,
    also: Callable[[Context, Folders], None] = lambda context, folders: None,
) -> tuple[Rows, dict[str, Any]]:
    """The rows that a stage trains on, and facts about them for its stage.json.

    Called by every rank. The main one tokenizes what isn't there yet and packs it, and does what is
    to be done `also`; the others wait and read. A stage that trains on all domains at once gets the
    rows of each domain's own.
    """
    parts = part_contexts(context)
    if parts == [context]:
        return _own_rows(context, tokenizer, also)
    rows, facts = zip(*(_own_rows(part, tokenizer, also) for part in parts))
    return _joined(parts, rows), {
        "parts": {part.folder.name: fact for part, fact in zip(parts, facts)}
    }


def part_contexts(context: Context) -> list[Context]:
    """The domains' stages whose rows the stage trains on together, or the stage itself."""
    return [dataclasses.replace(context, stage=part) for part in context.stage.each()]


def _joined(parts: Sequence[Context], rows: Sequence[Rows]) -> JoinedRows:
    trainings = [part.stage.training for part in parts]
    steps = [planned_steps(t, r.per_epoch) for t, r in zip(trainings, rows)]
    joined = JoinedRows(rows, steps, [t.global_batch_size for t in trainings], parts[0].recipe.seed)
    say(f"data: {len(joined)} rows of {len(parts)} domains together")
    return joined


def _own_rows(
    context: Context[RowsStage],
    tokenizer: PreTrainedTokenizerBase,
    also: Callable[[Context, Folders], None],
) -> tuple[Rows, dict[str, Any]]:
    if is_main():
        context.folder.mkdir(parents=True, exist_ok=True)

    def make() -> dict[str, str]:
        folders = prepare(context, tokenizer)
        if context.stage.FORM == CHATS:
            _packed(context, folders).save(context.folder / _PACKED)
        also(context, folders)
        return {name: str(folder) for name, folder in folders.items()}

    made = from_main(context.folder / _FOLDERS, make)
    folders = {name: Path(folder) for name, folder in made.items()}
    if context.stage.FORM == TEXTS:
        return _blended(context, folders)
    rows: PairRows | PackedDocuments = (
        _pairs(context, folders)
        if context.stage.FORM == PAIRS
        else PackedDocuments.load(context.folder / _PACKED, _stored(folders))
    )
    report = rows.report
    say(f"data: {report}")
    return rows, {
        "conversations": report.documents_by_source,
        "sources": _how_read(folders),
        "packing": dataclasses.asdict(report) | {"efficiency": report.efficiency},
    }


def _how_read(folders: Folders) -> dict[str, dict[str, Any]]:
    """Facts about each source: its form, how many items were left out, and notes on them."""
    return {
        name: {key: stored.manifest[key] for key in ("form", "left_out", "notes")}
        for name, stored in _stored(folders).items()
    }


def validation_rows(context: Context, tokenizer: PreTrainedTokenizerBase) -> Rows | None:
    """The rows that the stage's loss is measured on, or None. Called by every rank."""
    chosen = context.stage.training.validation
    if not chosen:
        return None

    def make() -> dict[str, str]:
        folders = _prepare(context, tokenizer, chosen)
        packed = pack(_stored(folders), context.stage.training.sequence_length)
        packed.save(context.folder / _VALIDATION)
        return {name: str(folder) for name, folder in folders.items()}

    made = from_main(context.folder / f"{_VALIDATION}.json", make)
    stored = _stored({name: Path(folder) for name, folder in made.items()})
    return PackedDocuments.load(context.folder / _VALIDATION, stored)


def preview_rows(context: Context, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows of a stage without its folder, for a single process to look at."""
    parts = part_contexts(context)
    if parts != [context]:
        return _joined(parts, [preview_rows(part, tokenizer) for part in parts])
    folders = prepare(context, tokenizer)
    if context.stage.FORM == TEXTS:
        return _blended(context, folders)[0]
    pairs = context.stage.FORM == PAIRS
    rows = _pairs(context, folders) if pairs else _packed(context, folders)
    say(f"data: {rows.report}")
    return rows


def prepare(
    context: Context, tokenizer: PreTrainedTokenizerBase, processes: int | None = None
) -> dict[str, Path]:
    """Tokenize those of the stage's sources that aren't yet; returns the folder of each.

    Raises BarError for sources that don't go together, and for what is wrong with one.
    """
    chosen = context.stage.sources()
    check_mixture(chosen)
    return _prepare(context, tokenizer, chosen, processes)


def _prepare(
    context: Context,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Source],
    processes: int | None = None,
) -> dict[str, Path]:
    seed, form = context.recipe.seed, context.stage.FORM
    root = context.run / "data" / _FOLDER_OF[form]
    folders, template = {}, None
    for source in chosen:
        drawn = open_source(source, seed, texts=form == TEXTS)
        if form == TEXTS:
            folder = store_texts(drawn, tokenizer, root, processes)
        else:
            template = template or named_template(context.recipe.chat_template, tokenizer)
            store = store_preferences if form == PAIRS else store_conversations
            folder = store(drawn, tokenizer, template, root, processes)
        folders[drawn.name] = folder
        for line in StoredDocuments(folder).report_lines():
            say(line)
    return folders


def _stored(folders: Folders) -> dict[str, StoredDocuments]:
    return {name: StoredDocuments(folder) for name, folder in folders.items()}


def _packed(context: Context[RowsStage], folders: Folders) -> PackedDocuments:
    """The conversations that the stage takes from each source, packed."""
    stored, training = _stored(folders), context.stage.training
    taken = context.stage.taken(stored, context.recipe.seed)
    return pack(stored, training.sequence_length, training.overlong, list(taken.values()))


def _pairs(context: Context[RowsStage], folders: Folders) -> PairRows:
    """The preference pairs that the stage takes from each source, one a row."""
    stored, training = _stored(folders), context.stage.training
    sizes = [len(documents) // 2 for documents in stored.values()]
    taken = picks(training.data, sizes, context.recipe.seed)
    return PairRows(stored, taken, training.sequence_length, training.overlong)


def _blended(context: Context, folders: Folders) -> tuple[BlendedRows, dict[str, Any]]:
    """The windows of running text, in order, as many as the stage's steps read."""
    stored = _stored(folders)
    training = context.stage.training
    tokens = [documents.tokens for documents in stored.values()]
    per_epoch = math.ceil(natural_size(training.data, tokens) / training.sequence_length)
    rows = BlendedRows(
        stored,
        shares(training.data, tokens),
        planned_steps(training, per_epoch) * training.global_batch_size,
        per_epoch,
        training.sequence_length,
        context.recipe.seed,
        context.run / "data" / _ORDERS,
    )
    facts = {}
    for (name, documents), share in zip(stored.items(), rows.shares):
        epochs = share * len(rows) * training.sequence_length / documents.tokens
        facts[name] = {
            "documents": len(documents),
            "tokens": documents.tokens,
            "share": share,
            "epochs": epochs,
            "left_out": documents.manifest["left_out"],
        }
        say(
            f"data: {name}: {documents.tokens} tokens in {len(documents)} documents, "
            f"{share:.1%} of the mixture, {epochs:.2f} epochs"
        )
    return rows, {"texts": facts}
