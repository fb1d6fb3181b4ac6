"""Sources in every form, drawn by the seed, and refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_bar.data import toy
from megatron_bar.data.sources import load_conversations, load_texts, source_name
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError


def record(number: int) -> dict:
    messages = [
        {"role": "user", "content": f"question {number} \u2028 é"},
        {"role": "assistant", "content": f"answer {number}"},
    ]
    return {"messages": messages, "text": f"text {number}", "answer": str(number)}


RECORDS = [record(number) for number in range(20)]


def write(path: Path, records: list) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        lines = [json.dumps(item, ensure_ascii=False) for item in records]
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_files(tmp_path, suffix):
    source = Source(path=str(write(tmp_path / f"maths.{suffix}", RECORDS)))
    conversations = load_conversations(source, seed=0)
    assert [conversation.item for conversation in conversations] == RECORDS
    assert [conversation.messages for conversation in conversations] == [
        item["messages"] for item in RECORDS
    ]
    assert {conversation.source for conversation in conversations} == {"maths"}
    assert load_texts(source, seed=0) == [item["text"] for item in RECORDS]


def test_json_lines_in_a_json_file(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text("\n".join(json.dumps(item) for item in RECORDS))
    assert len(load_conversations(Source(path=str(path)), seed=0)) == 20


def test_a_text_file_is_one_text(tmp_path):
    path = tmp_path / "speech.txt"
    path.write_text("One.\n\nTwo.\n")
    assert load_texts(Source(path=str(path)), seed=0) == ["One.\n\nTwo.\n"]
    with pytest.raises(BarError, match="holds text, not conversations"):
        load_conversations(Source(path=str(path)), seed=0)


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def test_hub(tmp_path, no_cache):
    folder = tmp_path / "folder"
    folder.mkdir()
    calls = record(20)
    calls["messages"][1] |= {"function_calls": "f()"}
    write(folder / "train.jsonl", [*RECORDS, calls])
    source = Source(hub=str(folder))
    conversations = load_conversations(source, seed=0)
    assert len(conversations) == 21
    assert conversations[20].messages[1]["function_calls"] == "f()"
    assert conversations[3].item["answer"] == "3"
    assert conversations[3].source == source_name(source) == "folder"
    drawn = load_conversations(Source(hub=str(folder), count=4), seed=0)
    assert len(drawn) == 4 and all(item in conversations for item in drawn)
    with pytest.raises(BarError, match="split heldout, can't be loaded") as error:
        load_conversations(Source(hub=str(folder), split="heldout"), seed=0)
    assert "\n" not in str(error.value)


def test_hub_that_is_not_there(tmp_path, no_cache):
    with pytest.raises(BarError, match="can't be loaded") as error:
        load_texts(Source(hub=str(tmp_path / "nowhere")), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("domain", ["general", *toy.DOMAINS])
def test_toy_conversations(domain):
    source = Source(toy=domain, split="heldout", count=6)
    conversations = load_conversations(source, seed=3)
    assert [item.item for item in conversations] == toy.conversations(domain, "heldout", 6, 3)
    assert all(item.messages == item.item["messages"] for item in conversations)
    assert all(item.item["answer"] for item in conversations)
    assert source_name(source) == conversations[0].source == domain


def test_toy_texts():
    assert load_texts(Source(toy="math", count=5), seed=1) == toy.texts("math", "train", 5, 1)


@pytest.mark.parametrize(
    "source, fault",
    [
        (Source(toy="math"), "count"),
        (Source(toy="maths", count=3), "no domain 'maths'; it has general, math"),
        (Source(toy="math", split="test", count=3), "split"),
        (Source(), "needs one of path, hub and toy; none given"),
        (Source(path="a.jsonl", toy="math"), "path and toy given"),
        (Source(path="nowhere.jsonl"), "nowhere.jsonl is not a file"),
        (Source(toy="math", count=0), "count is 0"),
        (Source(toy="math", count=3, repeat=0), "repeat is 0"),
    ],
)
def test_bad_sources(source, fault):
    with pytest.raises(BarError, match=fault) as error:
        load_conversations(source, seed=0)
    assert "\n" not in str(error.value)


def test_toy_domain_without_texts():
    with pytest.raises(BarError, match="no texts for 'safety'"):
        load_texts(Source(toy="safety", count=3), seed=0)


@pytest.mark.parametrize(
    "name, content, fault",
    [
        ("a.jsonl", '{"messages": []}\n', r"a\.jsonl:1: messages must be a list of at least one"),
        ("a.jsonl", '\n{"messages"\n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", '\n\n{"text": "x"}\n', r"a\.jsonl:3: column 'messages' is missing; .* text"),
        ("a.jsonl", '{"messages": "x"}', r"a\.jsonl:1: messages must be a list"),
        ("a.jsonl", '{"messages": null}', r"a\.jsonl:1: messages must be a list"),
        ("a.jsonl", '{"messages": [{"role": "bot", "content": "x"}]}', r":1: message 1 has role"),
        ("a.jsonl", '"x"\n', r"a\.jsonl:1: a record is str"),
        ("a.jsonl", "\n\n", "source a is empty"),
        ("a.json", '[{"text": 1},\n{"text" 2}]', r"a\.json:2: not valid JSON"),
        ("a.json", '{"messages":\n[]}', r"a\.json item 1: messages must be a list"),
        ("a.json", '{"messages":\n[}', r"a\.json:1: not valid JSON"),
        ("a.json", "[3]", r"a\.json item 1: a record is int"),
        ("a.parquet", "not parquet", r"a\.parquet is not a whole parquet file"),
        ("a.csv", "x", r"'\.csv' isn't supported"),
    ],
)
def test_bad_files(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(BarError, match=fault) as error:
        load_conversations(Source(path=str(tmp_path / name)), seed=0)
    assert "\n" not in str(error.value)


def test_bad_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": 3}\n')
    with pytest.raises(BarError, match=r"a\.jsonl:2: column 'text' is int, not text"):
        load_texts(Source(path=str(path)), seed=0)
    with pytest.raises(BarError, match=r"a\.jsonl:1: column 'body' is missing; there are text"):
        load_texts(Source(path=str(path), text_column="body"), seed=0)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BarError, match="UTF-8"):
        load_texts(Source(path=str(tmp_path / "latin.txt")), seed=0)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(BarError, match="source empty is empty"):
        load_texts(Source(path=str(tmp_path / "empty.txt")), seed=0)


def test_count_and_repeat(tmp_path):
    path = write(tmp_path / "a.jsonl", RECORDS)

    def numbers(seed, **more):
        found = load_conversations(Source(path=str(path), **more), seed)
        return [int(conversation.item["answer"]) for conversation in found]

    # Pinned: a change here would change what every run draws.
    assert numbers(0, count=7) == [1, 4, 7, 13, 15, 18, 19]
    assert numbers(0, count=7) == sorted(set(numbers(0, count=7)))
    assert numbers(1, count=7) != numbers(0, count=7)
    assert numbers(0, count=7, name="other") == numbers(0, count=7)
    assert numbers(0, count=20) == numbers(0) == list(range(20))
    assert numbers(0, count=2, repeat=3) == numbers(0, count=2) * 3
    with pytest.raises(BarError, match="count is 21, but it holds 20"):
        numbers(0, count=21)


def test_names():
    assert source_name(Source(path="/data/gsm8k.train.jsonl")) == "gsm8k.train"
    assert source_name(Source(hub="allenai/Dolci-Instruct-SFT")) == "Dolci-Instruct-SFT"
    assert source_name(Source(toy="math", name="sums")) == "sums"
