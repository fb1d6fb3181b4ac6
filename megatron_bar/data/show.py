"""Rows as a person can check them: what the model reads, and in colour what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.rows import PackedRows

LEARNED, READ, HEADING = "bold green", "dim", "bold cyan"
# Where there are no colours, learned tokens stand between these.
_OPEN, _CLOSE = "⟦", "⟧"


def shown_documents(
    rows: PackedRows, tokenizer: PreTrainedTokenizerBase, colour: bool
) -> Iterator[tuple[Text, Text]]:
    """A heading and the text of each document of `rows`; learned tokens in colour.

    Without `colour` they stand in brackets.
    """
    for row in range(len(rows)):
        documents_S = rows.documents_RS[row]
        for number in range(1, documents_S.max() + 1):
            place = np.flatnonzero(documents_S == number)
            ids, learned = rows.tokens_RS[row, place], rows.loss_RS[row, place]
            source = rows.source_names[rows.sources_RS[row, place[0]]]
            heading = (
                f"row {row + 1}, document {number} of {documents_S.max()}, source {source}: "
                f"{len(ids)} tokens, {learned.sum()} learned"
            )
            yield Text(heading, HEADING), _text(ids, learned, tokenizer, colour)


def _text(
    ids: np.ndarray, learned: np.ndarray, tokenizer: PreTrainedTokenizerBase, colour: bool
) -> Text:
    text = Text()
    for learns, run in groupby(zip(ids.tolist(), learned.tolist()), key=lambda pair: pair[1]):
        said = tokenizer.decode([token for token, _ in run])
        if learns and not colour:
            said = f"{_OPEN}{said}{_CLOSE}"
        text.append(said, LEARNED if learns else READ)
    return text
