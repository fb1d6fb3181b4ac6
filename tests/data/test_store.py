"""Tokenized sources on disk: what is in them, and that they are made once, whole, and resumably."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_bar.data import store, toy
from megatron_bar.data.encoding import encode_conversations, encode_texts
from megatron_bar.data.packing import Examples, pack
from megatron_bar.data.sources import open_source
from megatron_bar.data.store import StoredDocuments, store_conversations, store_texts
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import file_digest

TEMPLATE = toy.CHAT_TEMPLATE
COUNT = 43


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "_SMALLEST_SHARD", 10)


@pytest.fixture
def texts(tmp_path) -> Source:
    path = tmp_path / "maths.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in _lines()))
    return Source(path=str(path))


def _lines() -> list[dict]:
    lines = [{"text": text} for text in toy.texts("math", "train", COUNT, 0)]
    lines[20]["text"] = ""
    return lines


@pytest.fixture
def chats() -> Source:
    return Source(toy="math", count=COUNT)


def tokenize_texts(source: Source, tokenizer, root: Path, processes: int = 1) -> Path:
    return store_texts(open_source(source, 0, texts=True), tokenizer, root, processes)


def tokenize_chats(source: Source, tokenizer, root: Path, processes: int = 1) -> Path:
    drawn = open_source(source, 0, texts=False)
    return store_conversations(drawn, tokenizer, TEMPLATE, root, processes)


@pytest.mark.parametrize("processes", [1, 3])
def test_texts(texts, small_tokenizer, tmp_path, processes):
    folder = tokenize_texts(texts, small_tokenizer, tmp_path / "data", processes)
    expected = list(encode_texts(small_tokenizer, open_source(texts, 0, texts=True).texts()))
    stored, megatrons = StoredDocuments(folder), IndexedDataset(str(folder / "tokens"))
    assert len(stored) == len(expected) == len(megatrons) == COUNT - 1  # one text is empty
    for number, ids in enumerate(expected):
        assert ids[-1] == small_tokenizer.eos_token_id
        assert stored.get(number).ids.tolist() == megatrons[number].tolist() == ids.tolist()
        assert stored.get(number).loss_mask.all()
    assert megatrons.document_indices.tolist() == list(range(COUNT))
    assert stored.tokens == sum(map(len, expected)) == stored.lengths_D.sum()
    assert (stored.supervised_D(10**6) == stored.lengths_D - 1).all()
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "tokens.bin",
        "tokens.idx",
    ]


@pytest.mark.parametrize("processes", [1, 3])
def test_conversations(chats, small_tokenizer, tmp_path, processes):
    folder = tokenize_chats(chats, small_tokenizer, tmp_path / "data", processes)
    conversations = open_source(chats, 0, texts=False).conversations()
    expected = Examples(list(encode_conversations(small_tokenizer, conversations, TEMPLATE)))
    stored = StoredDocuments(folder)
    assert (stored.lengths_D == expected.lengths_D).all()
    for number, example in enumerate(expected.examples):
        assert stored.get(number).ids.tolist() == example.ids.tolist()
        assert stored.get(number).loss_mask.tolist() == example.loss_mask.tolist()
    for limit in (2, 5, 17, 30, 10**6):
        assert stored.supervised_D(limit).tolist() == expected.supervised_D(limit).tolist()
    ours, theirs = (pack({"chat": d}, 64) for d in (stored, expected))
    assert ours.report == theirs.report
    for name in ("tokens_RS", "loss_RS", "documents_RS", "sources_RS"):
        a, b = (getattr(packed.take(range(len(packed))), name) for packed in (ours, theirs))
        assert (a == b).all()


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_other_files_give_the_same_tokens(texts, small_tokenizer, tmp_path, kind, monkeypatch):
    """Also where children read them that were forked from a process that has read them."""
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(_lines()), tmp_path / "maths.parquet", row_group_size=7
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    other = Source(path=str(tmp_path / "maths.parquet"))
    if kind == "hub":
        (tmp_path / "maths").mkdir()
        (tmp_path / "maths.parquet").rename(tmp_path / "maths" / "train.parquet")
        other = Source(hub=str(tmp_path / "maths"))
    folders = [tokenize_texts(s, small_tokenizer, tmp_path / "data", 3) for s in (texts, other)]
    first, second = ((folder / "tokens.bin").read_bytes() for folder in folders)
    assert first == second and folders[0] != folders[1]
    assert tokenize_texts(other, small_tokenizer, tmp_path / "data", 3) == folders[1]


def test_a_second_call_does_nothing(texts, small_tokenizer, tmp_path, monkeypatch):
    """Nor does one on the same bytes at another time or place."""
    first = tokenize_texts(texts, small_tokenizer, tmp_path / "data")
    monkeypatch.setattr(store, "encode_texts", None)
    assert tokenize_texts(texts, small_tokenizer, tmp_path / "data") == first
    copy = tmp_path / "elsewhere" / Path(texts.path).name
    copy.parent.mkdir()
    shutil.copy(texts.path, copy)
    Path(texts.path).touch()
    for source in (texts, Source(path=str(copy))):
        assert tokenize_texts(source, small_tokenizer, tmp_path / "data") == first


def test_the_name_tells_the_content(texts, chats, small_tokenizer, tmp_path):
    root = tmp_path / "data"
    first = tokenize_texts(texts, small_tokenizer, root)
    few = Source(path=texts.path, count=5)
    assert tokenize_texts(few, small_tokenizer, root) != first
    with open(texts.path, "a") as file:
        file.write('{"text": "more"}\n')
    changed = tokenize_texts(texts, small_tokenizer, root)
    assert changed != first and len(StoredDocuments(changed)) == len(StoredDocuments(first)) + 1
    drawn = open_source(chats, 0, texts=False)
    paths = {
        store.stored_path(drawn, small_tokenizer, TEMPLATE, root),
        store.stored_path(drawn, small_tokenizer, TEMPLATE + " ", root),
        store.stored_path(open_source(chats, 1, texts=False), small_tokenizer, TEMPLATE, root),
    }
    assert len(paths) == 3


def test_what_was_killed_goes_on_with_what_is_missing(
    texts, small_tokenizer, tmp_path, monkeypatch
):
    whole = tokenize_texts(texts, small_tokenizer, tmp_path / "whole")
    write, written = store._write_shard, []

    def write_or_die(prefix, *rest):
        if prefix.name == "shard-00002":
            (prefix.with_suffix(".bin")).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(prefix, *rest)

    monkeypatch.setattr(store, "_write_shard", write_or_die)
    root = tmp_path / "data"
    killed = multiprocessing.get_context("fork").Process(
        target=tokenize_texts, args=(texts, small_tokenizer, root)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not any((path / "manifest.json").exists() for path in root.iterdir())

    def write_and_note(prefix, *rest):
        written.append(prefix.name)
        return write(prefix, *rest)

    monkeypatch.setattr(store, "_write_shard", write_and_note)
    folder = tokenize_texts(texts, small_tokenizer, root)
    assert written == ["shard-00002", "shard-00003", "shard-00004"]
    made, expected = (
        {path.name: file_digest(path) for path in where.iterdir()} for where in (folder, whole)
    )
    assert made == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_says_where_and_leaves_nothing(small_tokenizer, tmp_path, processes):
    path = tmp_path / "chat.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "user", "content": "<|im_end|>"}, good["messages"][1]]}
    path.write_text("".join(json.dumps(r) + "\n" for r in [good] * 30 + [bad] + [good] * 9))
    root = tmp_path / "data"
    with pytest.raises(BarError, match=r"chat\.jsonl:31: message 1 holds <\|im_end\|>"):
        tokenize_chats(Source(path=str(path)), small_tokenizer, root, processes)
    assert [path for path in root.iterdir() if path.is_dir()] == []


def test_texts_without_tokens(small_tokenizer, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": ""}\n' * 12)
    with pytest.raises(BarError, match="source empty holds no tokens to train on"):
        tokenize_texts(Source(path=str(path)), small_tokenizer, tmp_path / "data")


def test_tokens_take_two_bytes_where_they_can(texts, small_tokenizer, tmp_path):
    folder = tokenize_texts(texts, small_tokenizer, tmp_path / "data")
    assert IndexedDataset(str(folder / "tokens")).index.dtype == np.uint16
