"""GSM8K with OLMo's tokenizer, from a file to a batch."""

from __future__ import annotations

import json

import pytest

from megatron_bar.data.batch import to_batch
from megatron_bar.data.batches import Batches
from megatron_bar.data.blend import BlendedRows
from megatron_bar.data.chat import TEMPLATES
from megatron_bar.data.encoding import encode_conversations, encode_texts
from megatron_bar.data.packing import pack, pack_examples, pack_texts
from megatron_bar.data.sources import load_conversations, load_texts, open_source
from megatron_bar.data.store import StoredDocuments, store_conversations, store_texts
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError


@pytest.fixture
def conversations(gsm8k, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in gsm8k))
    return load_conversations(Source(path=str(path)), seed=0)


@pytest.mark.parametrize("template", ["olmo", "tulu"])
def test_only_answers_are_learned(dolma2, conversations, template):
    examples = list(encode_conversations(dolma2, conversations, TEMPLATES[template]))
    rows = pack_examples(examples, 512)
    print(f"{template}: {rows.report}")
    assert rows.report.documents == 200
    assert rows.report.efficiency > 0.95
    answers = []
    batch = to_batch(rows, dolma2.pad_token_id)
    for labels_S, mask_S, documents_S in zip(
        batch.labels_BS, batch.loss_mask_BS, rows.documents_RS
    ):
        for document in range(1, documents_S.max() + 1):
            learned = labels_S[(mask_S > 0) & (documents_S == document)]
            answers.append(dolma2.decode(learned))
    # What is learned is every answer with its end, and nothing else.
    expected = [item.messages[-1]["content"] for item in conversations]
    assert sorted(answers) == sorted(text + dolma2.eos_token for text in expected)
    assert batch.loss_mask_BS.sum() == sum(len(ids) for ids in encode_texts(dolma2, expected))


def test_all_tokens_reach_a_step(dolma2, conversations):
    examples = list(encode_conversations(dolma2, conversations, TEMPLATES["olmo"]))
    rows = pack_examples(examples, 512)
    batches = Batches(len(rows), global_batch_size=8, seed=0)
    learned = {
        int(index): float(to_batch(rows.take([index]), dolma2.pad_token_id).loss_mask_BS.sum())
        for step in range(-(-len(rows) // 8))
        for rank in range(2)
        for index in batches.share(step, rank, 2)
    }
    assert sum(learned.values()) == rows.report.supervised


def test_a_fault_says_where(dolma2, conversations):
    conversations[4].messages[0]["content"] += "<|im_start|>assistant"
    with pytest.raises(BarError, match=r"gsm8k\.jsonl:5: message 1 holds <\|im_start\|>"):
        list(encode_conversations(dolma2, conversations, TEMPLATES["olmo"]))


def test_texts(dolma2, shared):
    path = shared / "general" / "tinystories_sample.txt"
    texts = load_texts(Source(path=str(path)), seed=0)
    rows = pack_texts(list(encode_texts(dolma2, texts)), 128)
    print(rows.report)
    kept = rows.tokens_RS[rows.documents_RS > 0].tolist()
    assert dolma2.decode(kept) == texts[0] + dolma2.eos_token
    assert rows.report.supervised == len(kept) - len(rows)  # all but the first of each row


def test_conversations_through_the_store(dolma2, conversations, tmp_path):
    """Tokenized by two processes, packed from the disk: the same rows as in memory."""
    source = Source(path=str(tmp_path / "gsm8k.jsonl"))
    template = TEMPLATES["olmo"]
    folder = store_conversations(open_source(source, 0, texts=False), dolma2, template, tmp_path, 2)
    packed = pack({"gsm8k": StoredDocuments(folder)}, 512)
    examples = list(encode_conversations(dolma2, conversations, template))
    expected = pack_examples(examples, 512, source="gsm8k")
    assert packed.report == expected.report
    rows = packed.take(range(len(packed)))
    assert (rows.tokens_RS == expected.tokens_RS).all() and (rows.loss_RS == expected.loss_RS).all()


@pytest.mark.usefixtures("one_process")
def test_texts_through_megatron(dolma2, shared, tmp_path):
    """Every window is a piece of a story, and together they are all of it."""
    source = Source(path=str(shared / "general" / "tinystories_sample.txt"))
    (text,) = load_texts(source, seed=0)
    folder = store_texts(open_source(source, 0, texts=True), dolma2, tmp_path / "texts")
    stored = StoredDocuments(folder)
    count = stored.tokens // 128
    rows = BlendedRows({"stories": stored}, [1.0], count, count, 128, 0, tmp_path / "orders")
    windows = [dolma2.decode(ids) for ids in rows.take(range(count)).tokens_RS]
    whole = text + dolma2.eos_token
    assert len(set(windows)) == count and all(window in whole for window in windows)
    assert sum(map(len, windows)) > len(whole) - 128 * 8
