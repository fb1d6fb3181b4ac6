"""Tokenized documents on disk, made once, by many processes, and memory-mapped by every rank.

A folder holds a Megatron-Core indexed dataset, tokens.bin and tokens.idx, a document a sequence;
for conversations also loss.bin, a byte a token, 1 where it carries loss; left_out.jsonl where a
source's `on_bad_item: skip` left items out; and manifest.json. Its name ends in a digest of all
that its content depends on, so what stands under a name never changes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.bad_items import LEFT_OUT, BadItems, describe_left_out
from megatron_bar.data.encoding import (
    encode_conversations,
    encode_preferences,
    encode_texts,
    tokenizer_digest,
)
from megatron_bar.data.forms import preferences
from megatron_bar.data.packing import Example
from megatron_bar.data.sources import SourceSample
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import (
    json_digest,
    publish,
    read_json,
    staging_path,
    write_json,
    write_json_lines,
)
from megatron_bar.runtime.locks import locked
from megatron_bar.runtime.pool import WorkerKilled, cores, spread

MANIFEST = "manifest.json"
_TOKENS = "tokens"
_LOSS = "loss.bin"
# Changes with the format of the folders, or with how texts and conversations become tokens.
_VERSION = 3
_SMALLEST_SHARD, _MOST_SHARDS = 2000, 2000


@dataclass
class _Seen:
    """What is met on the way through a source's items: what can't be used, and notes, counted."""

    bad: BadItems
    notes: Counter[str] = field(default_factory=Counter)

    def save(self, path: Path) -> None:
        write_json(path, {"left_out": list(self.bad.listed.values()), "notes": self.notes})

    def add(self, path: Path) -> None:
        """Add what `save` wrote."""
        saved = read_json(path)
        for entry in saved["left_out"]:
            self.bad.add(entry["item"], entry["where"], BarError(entry["reason"]))
        self.notes.update(saved["notes"])


class StoredDocuments:
    """The tokenized documents of one source, read where they lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)

    @property
    def prefix(self) -> str:
        """The path by which Megatron-Core calls the dataset."""
        return str((self.folder / _TOKENS).resolve())

    @property
    def tokens(self) -> int:
        return self.manifest["tokens"]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """The items that aren't here because they can't be used, as `BadItems` lists them."""
        path = self.folder / LEFT_OUT
        if not path.is_file():
            return []
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @cached_property
    def items_D(self) -> np.ndarray:
        """The number of each conversation among the items drawn from the source."""
        missing = [entry["item"] for entry in self.left_out]
        return np.delete(np.arange(self.manifest["records"]), missing)

    def report_lines(self) -> list[str]:
        """Lines that say what a person should know of how the source was read, if anything."""
        name, form = self.manifest["source"], self.manifest.get("form")
        lines = []
        if form is not None:
            lines.append(f"{name}: read as {form} (conversations: {len(self)})")
        if left_out := self.left_out:
            lines.append(
                f"{describe_left_out(name, left_out)}; all are listed in {self.folder / LEFT_OUT}"
            )
        return lines + [
            f"{name}: {note} (conversations: {count})"
            for note, count in self.manifest.get("notes", {}).items()
        ]

    def __len__(self) -> int:
        return self.manifest["documents"]

    @cached_property
    def _indexed(self) -> IndexedDataset:
        return IndexedDataset(self.prefix)

    @cached_property
    def _starts_D(self) -> np.ndarray:
        """The place of each document's first token."""
        return np.cumsum(self.lengths_D) - self.lengths_D

    @cached_property
    def _loss(self) -> np.ndarray | None:
        path = self.folder / _LOSS
        return np.memmap(path, np.uint8, "r") if path.is_file() else None

    @cached_property
    def lengths_D(self) -> np.ndarray:
        return self._indexed.sequence_lengths.astype(np.int64)

    def supervised_D(self, limit: int) -> np.ndarray:
        """Tokens of each document that carry loss, within its first `limit` but the first."""
        lengths_D = np.minimum(self.lengths_D, limit)
        if self._loss is None:
            return lengths_D - 1
        # Sums from each start to its end, and from there to the next start: we take one of two.
        bounds = np.stack([self._starts_D, self._starts_D + lengths_D], axis=1).reshape(-1)
        sums_D = np.add.reduceat(self._loss, bounds, dtype=np.int64)[::2]
        return sums_D - self._loss[self._starts_D]

    def get(self, index: int) -> Example:
        ids = self._indexed[index]
        if self._loss is None:
            return Example(ids, np.ones(len(ids), bool))
        start = self._starts_D[index]
        return Example(ids, self._loss[start : start + len(ids)].astype(bool))


def store_texts(
    drawn: SourceSample,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    processes: int | None = None,
) -> Path:
    """The folder with the source's texts, a document each that ends with eos. See `_store`."""

    def encode(start: int, stop: int, seen: _Seen) -> Iterator[Example]:
        for ids in encode_texts(tokenizer, drawn.texts(start, stop, seen.bad)):
            yield Example(ids, np.ones(len(ids), bool))

    return _store(drawn, tokenizer, None, encode, lambda: None, root, processes)


def store_conversations(
    drawn: SourceSample,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    root: Path,
    processes: int | None = None,
) -> Path:
    """The folder with the source's conversations and what in them carries loss. See `_store`."""

    def encode(start: int, stop: int, seen: _Seen) -> Iterator[Example]:
        conversations = drawn.conversations(start, stop, seen.bad)
        return encode_conversations(tokenizer, conversations, template, seen.bad, seen.notes)

    return _store(drawn, tokenizer, template, encode, lambda: drawn.form.what, root, processes)


def store_preferences(
    drawn: SourceSample,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    root: Path,
    processes: int | None = None,
) -> Path:
    """The folder with the source's preference pairs, two documents each: chosen, rejected.

    See `_store`.
    """

    def encode(start: int, stop: int, seen: _Seen) -> Iterator[Example]:
        pairs = drawn.preferences(start, stop, seen.bad)
        return encode_preferences(tokenizer, pairs, template, seen.bad, seen.notes)

    return _store(drawn, tokenizer, template, encode, lambda: preferences.WHAT, root, processes)


def stored_path(
    drawn: SourceSample, tokenizer: PreTrainedTokenizerBase, template: str | None, root: Path
) -> Path:
    """The folder for the source's documents, named by the source and how they are made."""
    digest = json_digest([_VERSION, drawn.identity, tokenizer_digest(tokenizer), template])
    return Path(root) / f"{drawn.name.replace('/', '-')}-{digest[:16]}"


def _store(
    drawn: SourceSample,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    encode: Callable[[int, int, _Seen], Iterator[Example]],
    form: Callable[[], str | None],
    root: Path,
    processes: int | None,
) -> Path:
    """Tokenize a source into a folder below `root`, unless it stands already.

    The work is cut into shards, on `processes` forked children (the cores by default). Killed, it
    goes on with the shards that are missing. Of several that want the same folder one makes it.

    Raises BarError for what is wrong with a text or a conversation, unless the source says to skip
    such items; then nothing is left behind.
    Raises WorkerKilled if a child is killed; the shards that stand are kept.
    """
    target = stored_path(drawn, tokenizer, template, root)
    if (target / MANIFEST).is_file():
        return _accepted(target, drawn)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(target):
        if (target / MANIFEST).is_file():
            return _accepted(target, drawn)
        staging = staging_path(target)
        staging.mkdir(exist_ok=True)
        dtype = DType.optimal_dtype(len(tokenizer))
        try:
            shards = _write_shards(drawn, encode, template is not None, dtype, staging, processes)
            seen = _seen_in(shards, drawn)
            counts = _join(shards, staging, dtype)
            left_out = list(seen.bad.listed.values())
            if not counts["documents"]:
                why = f": {describe_left_out(drawn.name, left_out)}" if left_out else ""
                raise BarError(f"source {drawn.name} holds no tokens to train on{why}")
        except WorkerKilled:
            raise
        except BarError:
            shutil.rmtree(staging)
            raise
        if left_out:
            write_json_lines(staging / LEFT_OUT, left_out)
        write_json(
            staging / MANIFEST,
            {
                "source": drawn.name,
                **counts,
                "records": len(drawn),
                "form": form(),
                "left_out": len(left_out),
                "notes": dict(seen.notes),
                "tokenizer": tokenizer_digest(tokenizer),
                "eos": tokenizer.eos_token_id,
                "dtype": dtype.__name__,
                "chat_template": template,
            },
        )
        publish(staging, target)
    return _accepted(target, drawn)


def _accepted(target: Path, drawn: SourceSample) -> Path:
    """`target`, unless items were left out that may not be any more."""
    bad = BadItems.of(drawn.source)
    if not bad.skip:
        for entry in StoredDocuments(target).left_out:
            bad.add(entry["item"], entry["where"], BarError(entry["reason"]))
    return target


def _write_shards(
    drawn: SourceSample,
    encode: Callable[[int, int, _Seen], Iterator[Example]],
    with_loss: bool,
    dtype: type,
    folder: Path,
    processes: int | None,
) -> list[Path]:
    """The prefixes of the shards, in order; those that stand already are left as they are."""
    total = len(drawn)
    size = max(_SMALLEST_SHARD, -(-total // _MOST_SHARDS))
    spans = [(start, min(start + size, total)) for start in range(0, total, size)]
    prefixes = {span: folder / f"shard-{number:05}" for number, span in enumerate(spans)}

    def write(span: tuple[int, int]) -> tuple[int, int]:
        seen = _Seen(BadItems.of(drawn.source))
        examples = encode(*span, seen)
        return span[1] - span[0], _write_shard(prefixes[span], examples, with_loss, dtype, seen)

    missing = [span for span in spans if not Path(f"{prefixes[span]}.idx").is_file()]
    done = total - sum(stop - start for start, stop in missing)
    with progress(f"tokenize {drawn.name}", total) as advance:
        if done:
            advance(done)
        tokens = 0
        for records, written in spread(write, missing, processes or cores()):
            tokens += written
            advance(records, note=f"{tokens / 1e6:.1f}M tokens")
    return list(prefixes.values())


def _write_shard(
    prefix: Path, examples: Iterable[Example], with_loss: bool, dtype: type, seen: _Seen
) -> int:
    """Write one shard; its index takes its name last. Returns the number of tokens."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    with contextlib.ExitStack() as stack:
        loss = stack.enter_context(open(f"{prefix}.loss", "wb")) if with_loss else None
        for example in examples:
            builder.add_document(example.ids, [len(example.ids)])
            if loss is not None:
                loss.write(np.asarray(example.loss_mask, np.uint8).tobytes())
    builder.finalize(f"{prefix}.partial")
    seen.save(Path(f"{prefix}.seen"))
    os.replace(f"{prefix}.partial", f"{prefix}.idx")
    return sum(builder.sequence_lengths)


def _seen_in(shards: list[Path], drawn: SourceSample) -> _Seen:
    """What was met in all shards. Raises BarError as `_accepted` does: some may be old."""
    whole = _Seen(BadItems.of(drawn.source))
    for shard in shards:
        whole.add(Path(f"{shard}.seen"))
    return whole


def _join(shards: list[Path], folder: Path, dtype: type) -> dict[str, int]:
    """Make one indexed dataset of the shards, which are removed. Returns what it holds."""
    builder = IndexedDatasetBuilder(str(folder / f"{_TOKENS}.bin"), dtype=dtype)
    gc.freeze()  # each add_index collects garbage, which takes long with so many modules loaded
    for shard in shards:
        builder.add_index(str(shard))
    gc.unfreeze()
    builder.finalize(str(folder / f"{_TOKENS}.idx"))
    losses = [shard.with_suffix(".loss") for shard in shards]
    if losses[0].is_file():
        with open(folder / _LOSS, "wb") as joined:
            for path in losses:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, joined)
            joined.write(b"\0")  # so that the end of the last document is a place, too
    for shard in shards:
        for path in folder.glob(f"{shard.name}.*"):
            path.unlink()
    lengths = builder.sequence_lengths
    return {"documents": len(lengths), "tokens": int(sum(lengths))}


@contextlib.contextmanager
def _only_writer(target: Path) -> Iterator[None]:
    """Stages that run side by side may want the same source: the others wait."""
    with locked(target.with_name(f".{target.name}.lock"), f"{target} is being made", math.inf):
        yield
