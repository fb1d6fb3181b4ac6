"""A stage's data: its sources as tokens in the run's folder, and the rows it trains on.

Tokenized sources lie in runs/NAME/data, where stages share them; one that stands is used as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.batches import planned_steps
from megatron_bar.data.blend import BlendedRows
from megatron_bar.data.chat_format import named_template
from megatron_bar.data.joined import JoinedRows
from megatron_bar.data.mixture import check_mixture, natural_size, picks, shares, stratified
from megatron_bar.data.packing import PackedDocuments, pack
from megatron_bar.data.rows import Rows
from megatron_bar.data.sources import open_source, source_name
from megatron_bar.data.store import StoredDocuments, store_conversations, store_texts
from megatron_bar.recipe.schema import Source, Training
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import from_main, is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json_lines
from megatron_bar.stages.context import Context, parts_of, sources

KINDS = ("midtrain", "sft", "route")  # the kinds of stages whose data are prepared
STORES = _TEXTS, _CHATS = "texts", "chats"  # folders of runs/NAME/data with tokenized sources
_ORDERS = "orders"
_PACKED, _VALIDATION, _FOLDERS = "packed", "validation", "data.json"
SAMPLE = "sample.jsonl"  # in a route stage's folder: the conversations that it drew


def stage_rows(context: Context, tokenizer: PreTrainedTokenizerBase) -> tuple[Rows, dict[str, Any]]:
    """The rows that a stage trains on, and facts about them for its stage.json.

    Called by every rank. The main one tokenizes what isn't there yet and packs it; the others wait
    and read. A stage that trains on all domains at once gets the rows of each domain's own.
    """
    parts = part_contexts(context)
    if parts == [context]:
        return _own_rows(context, tokenizer)
    rows, facts = zip(*(_own_rows(part, tokenizer) for part in parts))
    return _joined(parts, rows), {"parts": dict(zip(context.stage.settings["parts"], facts))}


def part_contexts(context: Context) -> list[Context]:
    """The domains' stages whose rows the stage trains on together, or the stage itself."""
    return [dataclasses.replace(context, stage=part) for part in parts_of(context.stage)]


def _joined(parts: Sequence[Context], rows: Sequence[Rows]) -> JoinedRows:
    trainings = [part.training for part in parts]
    steps = [planned_steps(t, r.per_epoch) for t, r in zip(trainings, rows)]
    joined = JoinedRows(rows, steps, [t.batch_size for t in trainings], parts[0].recipe.seed)
    say(f"data: {len(joined)} rows of {len(parts)} domains together")
    return joined


def _own_rows(
    context: Context, tokenizer: PreTrainedTokenizerBase
) -> tuple[Rows, dict[str, Any]]:
    if is_main():
        context.folder.mkdir(parents=True, exist_ok=True)

    def make() -> dict[str, str]:
        folders = prepare(context, tokenizer)
        if context.stage.kind != "midtrain":
            _packed(context, folders).save(context.folder / _PACKED)
        if context.stage.kind == "route":
            _record_sample(context, folders)
        return {name: str(folder) for name, folder in folders.items()}

    made = from_main(context.folder / _FOLDERS, make)
    folders = {name: Path(folder) for name, folder in made.items()}
    if context.stage.kind == "midtrain":
        return _blended(context, folders)
    rows = PackedDocuments.load(context.folder / _PACKED, _stored(folders))
    report = rows.report
    say(f"data: {report}")
    return rows, {"conversations": report.documents_by_source, "sources": _how_read(folders),
                  "packing": dataclasses.asdict(report) | {"efficiency": report.efficiency}}


def _how_read(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Facts about each source: its form, how many items were left out, and notes on them."""
    return {name: {key: stored.manifest[key] for key in ("form", "left_out", "notes")}
            for name, stored in _stored(folders).items()}


def validation_rows(context: Context, tokenizer: PreTrainedTokenizerBase) -> Rows | None:
    """The rows that the stage's loss is measured on, or None. Called by every rank."""
    chosen = context.training.validation
    if not chosen:
        return None

    def make() -> dict[str, str]:
        folders = _prepare(context, tokenizer, chosen)
        pack(_stored(folders), context.training.sequence_length).save(context.folder / _VALIDATION)
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
    if context.stage.kind == "midtrain":
        return _blended(context, folders)[0]
    rows = _packed(context, folders)
    say(f"data: {rows.report}")
    return rows


def prepare(
    context: Context, tokenizer: PreTrainedTokenizerBase, processes: int | None = None
) -> dict[str, Path]:
    """Tokenize those of the stage's sources that aren't yet; returns the folder of each.

    Raises BarError for sources that don't go together, and for what is wrong with one.
    """
    chosen = _sources(context)
    check_mixture(chosen)
    return _prepare(context, tokenizer, chosen, processes)


def _prepare(
    context: Context,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Source],
    processes: int | None = None,
) -> dict[str, Path]:
    seed, root = context.recipe.seed, context.run / "data"
    folders, template = {}, None
    for source in chosen:
        if context.stage.kind == "midtrain":
            drawn = open_source(source, seed, texts=True)
            folder = store_texts(drawn, tokenizer, root / _TEXTS, processes)
        else:
            drawn = open_source(source, seed, texts=False)
            template = template or named_template(context.recipe.chat_template, tokenizer)
            folder = store_conversations(drawn, tokenizer, template, root / _CHATS, processes)
        folders[drawn.name] = folder
        for line in StoredDocuments(folder).told():
            say(line)
    return folders


def _sources(context: Context) -> list[Source]:
    if context.stage.kind == "route":
        sampled = context.stage.settings["sampled"]
        return routing_sources({name: sources(entries) for name, entries in sampled.items()})
    return context.training.data


def routing_sources(by_domain: Mapping[str, Sequence[Source]]) -> list[Source]:
    """Every SFT source of every domain once; general data that several mix in are one source.

    Sources are told apart by what they hold. Where domains take different counts the largest is
    sampled, and how often or how heavily a domain mixes a source doesn't matter here.
    """
    found: dict[str, Source] = {}
    for domain_sources in by_domain.values():
        for source in domain_sources:
            name = source_name(source)
            known = found.get(name)
            if known is not None and _place(known) != _place(source):
                raise BarError(f"two data sources are called {name!r}; give one of them a name")
            if known is None or _size(source) > _size(known):
                found[name] = dataclasses.replace(source, repeat=1, weight=None)
    return list(found.values())


def _size(source: Source) -> float:
    return math.inf if source.count is None else source.count


def _place(source: Source) -> tuple:
    return source.path, source.hub, source.toy, source.split


def _stored(folders: Mapping[str, Path]) -> dict[str, StoredDocuments]:
    return {name: StoredDocuments(folder) for name, folder in folders.items()}


def _packed(context: Context, folders: Mapping[str, Path]) -> PackedDocuments:
    """The conversations that the stage takes from each source, packed."""
    stored = _stored(folders)
    sizes = {name: len(documents) for name, documents in stored.items()}
    seed, training = context.recipe.seed, context.training
    taken: list[np.ndarray]
    if context.stage.kind == "route":
        taken = list(_sample(context, stored).values())
    else:
        taken = picks(training.data, list(sizes.values()), seed)
    return pack(stored, training.sequence_length, training.overlong, taken)


def _sample(
    context: Context, stored: Mapping[str, StoredDocuments]
) -> dict[str, np.ndarray]:
    """Which documents of each source route takes."""
    sizes = {name: len(documents) for name, documents in stored.items()}
    return stratified(sizes, context.stage.settings["fraction"], context.recipe.seed)


def _record_sample(context: Context, folders: Mapping[str, Path]) -> None:
    """Write down what route drew, a conversation a line: its source, its place and itself."""
    taken = _sample(context, _stored(folders))
    write_json_lines(context.folder / SAMPLE, _drawn(context, folders, taken))


def _drawn(
    context: Context, folders: Mapping[str, Path], taken: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for source in _sources(context):
        drawn = open_source(source, context.recipe.seed, texts=False)
        documents = taken[drawn.name]
        items = StoredDocuments(folders[drawn.name]).items_D[documents].tolist()
        chosen = dataclasses.replace(drawn, chosen=[drawn.chosen[item] for item in items])
        for document, conversation in zip(documents.tolist(), chosen.conversations(), strict=True):
            yield {"source": drawn.name, "document": document, "where": conversation.where,
                   "messages": conversation.messages}


def _blended(context: Context, folders: Mapping[str, Path]) -> tuple[BlendedRows, dict[str, Any]]:
    """The windows of running text, in order, as many as the stage's steps read."""
    stored = _stored(folders)
    training: Training = context.training
    tokens = [documents.tokens for documents in stored.values()]
    per_epoch = math.ceil(natural_size(training.data, tokens) / training.sequence_length)
    rows = BlendedRows(
        stored, shares(training.data, tokens),
        planned_steps(training, per_epoch) * training.batch_size, per_epoch,
        training.sequence_length, context.recipe.seed, context.run / "data" / _ORDERS,
    )
    facts = {}
    for (name, documents), share in zip(stored.items(), rows.shares):
        epochs = share * len(rows) * training.sequence_length / documents.tokens
        facts[name] = {"documents": len(documents), "tokens": documents.tokens,
                       "share": share, "epochs": epochs,
                       "left_out": documents.manifest["left_out"]}
        say(f"data: {name}: {documents.tokens} tokens in {len(documents)} documents, "
            f"{share:.1%} of the mixture, {epochs:.2f} epochs")
    return rows, {"texts": facts}
