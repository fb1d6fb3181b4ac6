"""Preference pairs in the forms that people have them, and as rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_bar.data.forms.preferences import read_pair
from megatron_bar.data.pairs import PairBatches, PairRows
from megatron_bar.data.sources import open_source
from megatron_bar.data.store import StoredDocuments, store_preferences
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError

USER, GOOD, BAD = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
PAIR = ([USER, GOOD], [USER, BAD])


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "2 + 2?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "id": 7},  # Ai2's
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
    ],
)
def test_all_forms_say_the_same(record):
    assert read_pair(record) == PAIR


def test_the_last_reply_alone_carries_loss_and_other_columns_belong_to_both():
    before = [USER, GOOD, USER]
    chosen, rejected = read_pair(
        {"system": "Add.", "chosen": [*before, GOOD], "rejected": [*before, BAD]}
    )
    assert chosen[:-1] == rejected[:-1] and chosen[0] == {"role": "system", "content": "Add."}
    assert [turn.get("loss") for turn in chosen] == [None, None, False, None, None]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": "a", "chosen": "b"}, "column 'rejected' is missing; there are prompt, chosen"),
        (
            {"chosen": "b", "rejected": "c"},
            "chosen is an answer alone, and column 'prompt' is missing",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD | {"role": "user"}, BAD]}, "different prompts"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "different prompts|ends with a user turn"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "content|text"),
        (["a"], "a record is list, not an object with columns"),
    ],
)
def test_what_is_no_pair_is_told(record, message):
    with pytest.raises(BarError, match=message):
        read_pair(record)


@pytest.fixture
def stored(tmp_path):
    """Three pairs; the rejected answer of the last one is long."""
    path = tmp_path / "pairs.jsonl"
    answers = [("4", "5"), ("4", "five"), ("4", "x" * 60)]
    path.write_text(
        "".join(
            json.dumps({"prompt": "2 + 2?", "chosen": a, "rejected": b}) + "\n" for a, b in answers
        )
    )
    tokenizer = train_tokenizer(["2 + 2? 4 5"], 300, tmp_path / "tokenizer", CHAT_TEMPLATE)
    drawn = open_source(Source(path=str(path)), 0, texts=False)
    folder = store_preferences(drawn, tokenizer, CHAT_TEMPLATE, tmp_path / "data", 1)
    return StoredDocuments(folder), tokenizer


def test_a_row_has_a_pair_its_answers_learned_and_nothing_else(stored):
    documents, tokenizer = stored
    assert len(documents) == 6 and "preference pairs" in documents.report_lines()[0]
    rows = PairRows({"pairs": documents}, [np.array([0, 1])], 40, "truncate").take([1, 0])
    for row, (good, bad) in enumerate([("4", "five"), ("4", "5")]):
        for half, answer in enumerate((good, bad)):
            part = slice(40 * half, 40 * half + 40)
            learned = rows.tokens_RS[row, part][rows.loss_RS[row, part]]
            assert tokenizer.decode(learned, skip_special_tokens=True).strip() == answer
            assert set(rows.documents_RS[row, part]) == {half + 1, 0}
            assert rows.documents_RS[row, 40 * half] == half + 1


def test_rows_taken_together_are_as_long_as_the_longest(stored):
    documents, _ = stored
    whole = PairRows({"pairs": documents}, [np.arange(3)], 160, "truncate")
    batches = PairBatches(whole, trims=True)
    batches.reference_R = np.array([0.5, 1.5, 2.5], np.float32)
    short, long = batches.take([1, 0]), batches.take([2])
    assert short.tokens_RS.shape == (2, 128) and short.reference_R.tolist() == [1.5, 0.5]
    assert 128 < long.tokens_RS.shape[1] <= 320
    for rows, indices in ((short, [1, 0]), (long, [2])):
        for name in ("tokens_RS", "loss_RS"):  # all that isn't padding is still there
            kept, all_ = (getattr(r, name)[r.documents_RS > 0] for r in (rows, whole.take(indices)))
            assert kept.tolist() == all_.tolist()
    assert PairBatches(whole, trims=False).take([0]).tokens_RS.shape == (1, 320)


def test_long_pairs_lose_their_end_or_are_left_out(stored):
    documents, _ = stored
    every = [np.arange(3)]
    assert PairRows({"pairs": documents}, every, 40, "truncate").report.truncated == 1
    assert len(PairRows({"pairs": documents}, every, 40, "drop")) == 2
    with pytest.raises(BarError, match="none of 3 preference pairs has something to learn"):
        PairRows({"pairs": documents}, every, 3, "truncate")
