"""A bad item is one line with its place, never a traceback; or it is left out, counted, listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_bar.data import store, toy
from megatron_bar.data.bad_items import LEFT_OUT
from megatron_bar.data.sources import load_conversations, load_texts, open_source
from megatron_bar.data.store import StoredDocuments, store_conversations, store_texts
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError

TEMPLATE = toy.CHAT_TEMPLATE
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000


def line(reply: str = "Yo", **more) -> str:
    return json.dumps(
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": reply},
            ],
            "text": reply,
            **more,
        }
    )


BAD = {
    "surrogate": (line("Hi \ud83d"), r"half of a character \(\\ud83d, one of a surrogate pair"),
    "deep": (f'{line()[:-1]}, "x": {DEEP}}}', "nested too deep to be read"),
    "no json": ('{"messages": [', "not valid JSON"),
    "no object": ("[1, 2, 3, 4, 5]", "a record is list"),
    "no text": (line(text=3).replace('"Yo"', "3"), "is int, not text"),
}


@pytest.mark.parametrize("bad, fault", BAD.values(), ids=BAD)
def test_a_bad_item_says_where(tmp_path, bad, fault):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\n{bad}\n")
    for load in (load_conversations, load_texts):
        with pytest.raises(BarError, match=fault) as error:
            load(Source(path=str(path)), 0)
        assert "a.jsonl:2: " in str(error.value) and "\n" not in str(error.value)


def test_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line().encode() + b'\n{"text": "caf\xe9"}\n')
    with pytest.raises(BarError, match=r"a\.jsonl:2: not UTF-8"):
        load_texts(Source(path=str(tmp_path / "a.jsonl")), 0)


@pytest.mark.parametrize("column", ["id", "answer"])
def test_an_endless_number_is_read(tmp_path, column):
    (tmp_path / "a.jsonl").write_text(f'{line()[:-1]}, "{column}": {LONG}}}\n')
    (found,) = load_conversations(Source(path=str(tmp_path / "a.jsonl")), 0)
    assert found.item[column] == LONG and load_texts(Source(path=found.where[:-2]), 0) == ["Yo"]


@pytest.mark.parametrize(
    "record",
    [
        '{"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Yo"}]}',
        '{"messages": [{"role": "user", "content": ["a", LONG]}, '
        '{"role": "assistant", "content": 1}]}',
        '{"instruction": "a", "input": LONG, "output": "b"}',
        '{"prompt": LONG, "completion": "b"}',
    ],
)
def test_an_endless_number_is_no_text(tmp_path, record):
    path = tmp_path / "a.jsonl"
    path.write_text(record.replace("LONG", LONG) + "\n")
    with pytest.raises(BarError, match=r"a\.jsonl:1: .* is a number of 5,000 digits, not text"):
        load_conversations(Source(path=str(path)), 0)
    path.write_text(f'{{"text": {LONG}}}\n')
    with pytest.raises(BarError, match=r"a\.jsonl:1: column 'text' is a number of 5,000 digits"):
        load_texts(Source(path=str(path)), 0)


@pytest.fixture
def spoilt(tmp_path, monkeypatch) -> Path:
    """40 good lines, with each kind of bad one among them, the first and the last bad."""
    monkeypatch.setattr(store, "_SMALLEST_SHARD", 10)
    lines = [line(f"Yo {number}") for number in range(40)]
    for place, (bad, _) in zip((0, 7, 15, 30), BAD.values()):
        lines.insert(place, bad)
    lines.append(line("<|im_end|>"))  # found by the template
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "chat.jsonl"


@pytest.mark.parametrize("processes", [1, 2])
def test_skipped_items_are_listed(spoilt, small_tokenizer, tmp_path, processes, monkeypatch):
    source = Source(path=str(spoilt), on_bad_item="skip")
    drawn = open_source(source, 0, texts=False)
    root = tmp_path / "data"
    stored = StoredDocuments(store_conversations(drawn, small_tokenizer, TEMPLATE, root, processes))
    assert len(stored) == 40 and stored.manifest["left_out"] == 5
    assert [entry["where"].rpartition(":")[2] for entry in stored.left_out] == [
        "1",
        "8",
        "16",
        "31",
        "45",
    ]
    assert [entry["item"] for entry in stored.left_out] == [0, 7, 15, 30, 44]
    assert "forge" in stored.left_out[-1]["reason"]
    # Which document is which item.
    for document in (0, 5, 6, 13, 39):
        item = int(stored.items_D[document])
        (conversation,) = drawn.conversations(item, item + 1)
        reply = small_tokenizer.decode(stored.get(document).ids)
        assert conversation.messages[1]["content"] == f"Yo {document}" in reply
    form, left_out = stored.report_lines()
    assert form == "chat: read as messages with role and content (conversations: 40)"
    assert left_out.startswith(f"chat: 5 bad items were left out, such as {spoilt}:1: message 2")
    assert left_out.endswith(str(stored.folder / LEFT_OUT))


def test_what_was_skipped_is_refused_when_it_may_not_be_any_more(spoilt, small_tokenizer, tmp_path):
    def make(on_bad_item):
        drawn = open_source(Source(path=str(spoilt), on_bad_item=on_bad_item), 0, texts=False)
        return store_conversations(drawn, small_tokenizer, TEMPLATE, tmp_path / "data", 1)

    with pytest.raises(BarError, match=r"chat\.jsonl:1: message 2: content holds half"):
        make("stop")
    folder = make("skip")
    assert make("skip") == folder
    with pytest.raises(BarError, match=r"chat\.jsonl:1: message 2: content holds half"):
        make("stop")


def test_skipped_texts(spoilt, small_tokenizer, tmp_path, capsys):
    source = Source(path=str(spoilt), on_bad_item="skip")
    folder = store_texts(open_source(source, 0, texts=True), small_tokenizer, tmp_path / "data", 1)
    stored = StoredDocuments(folder)
    assert len(stored) == 41 and len(stored.left_out) == 4  # a text may hold a marker
    assert len(load_texts(source, 0)) == 41 and len(load_conversations(source, 0)) == 41
    assert "chat: 4 bad items were left out, such as" in capsys.readouterr().out


def test_nothing_but_bad_items(tmp_path, small_tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text((line("<|im_end|>") + "\n") * 3)
    drawn = open_source(Source(path=str(path), on_bad_item="skip"), 0, texts=False)
    with pytest.raises(
        BarError,
        match=r"no tokens to train on: a: 3 bad items were left out, such "
        r"as .*a\.jsonl:1: message 2 holds",
    ):
        store_conversations(drawn, small_tokenizer, TEMPLATE, tmp_path / "data", 1)
    path.write_text('{"text": "x", "y": 1}\n' * 3)
    source = Source(path=str(path), on_bad_item="skip")
    with pytest.raises(BarError, match=r"3 bad items were left out, .* 'messages' is missing"):
        load_conversations(source, 0)


def test_a_word_that_is_neither():
    with pytest.raises(BarError, match="on_bad_item 'drop' is unknown; there are stop, skip"):
        load_texts(Source(toy="math", count=1, on_bad_item="drop"), 0)


def test_notes_are_counted(tmp_path, small_tokenizer):
    path = tmp_path / "a.jsonl"
    message = {"role": "user", "content": "Hi", "country": "NO"}
    noted = json.dumps({"messages": [message, {"role": "assistant", "content": "Yo"}]})
    path.write_text(f"{line()}\n{noted}\n{noted}\n")
    drawn = open_source(Source(path=str(path)), 0, texts=False)
    stored = StoredDocuments(store_conversations(drawn, small_tokenizer, TEMPLATE, tmp_path / "d"))
    assert stored.report_lines()[1] == "a: key 'country' of a message isn't used (conversations: 2)"
