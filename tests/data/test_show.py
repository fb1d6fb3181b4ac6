"""What a person is shown is what the model learns."""

from __future__ import annotations

import numpy as np

from megatron_bar.data import toy
from megatron_bar.data.encoding import encode_conversations, encode_texts
from megatron_bar.data.packing import Examples, pack, pack_texts
from megatron_bar.data.show import LEARNED, shown_documents
from megatron_bar.data.sources import load_conversations
from megatron_bar.recipe.training import Source


def test_learned_tokens_are_coloured(small_tokenizer):
    conversations = load_conversations(Source(toy="math", count=6), 0)
    examples = list(encode_conversations(small_tokenizer, conversations, toy.CHAT_TEMPLATE))
    packed = pack({"sums": Examples(examples)}, 256)
    rows = packed.take(range(len(packed)))
    shown = list(shown_documents(rows, small_tokenizer, colour=True))
    assert len(shown) == 6
    green = sorted(
        "".join(text.plain[span.start : span.end] for span in text.spans if span.style == LEARNED)
        for _, text in shown
    )
    assert green == sorted(c.messages[-1]["content"] + "<|endoftext|>" for c in conversations)
    assert {text.plain for _, text in shown} == {small_tokenizer.decode(e.ids) for e in examples}
    heading = shown[0][0].plain
    learned = shown[0][1].plain and int(rows.loss_RS[0][rows.documents_RS[0] == 1].sum())
    assert heading.startswith("row 1, document 1 of ") and "source sums: " in heading
    assert heading.endswith(f" tokens, {learned} learned")


def test_brackets_where_there_are_no_colours(small_tokenizer):
    rows = pack_texts(list(encode_texts(small_tokenizer, ["1 2", "3 4"])), 8)
    shown = [text.plain for _, text in shown_documents(rows, small_tokenizer, colour=False)]
    firsts = [
        small_tokenizer.decode(rows.tokens_RS[0][np.argmax(rows.documents_RS[0] == n)])
        for n in (1, 2)
    ]
    assert firsts == ["1", "3"]
    assert shown[0] == "1⟦ 2<|endoftext|>⟧" and shown[1].startswith("3⟦ 4")
