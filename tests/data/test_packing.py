"""Rows hold every document once, and no document sees another."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from megatron_bar.data.batch import to_batch
from megatron_bar.data.packing import (
    Example,
    Examples,
    PackedDocuments,
    pack,
    pack_examples,
    pack_texts,
)
from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.runtime.errors import BarError

PAD, EOS = 999, 500


def made(length: int, first: int = 1, prompt: int = 1) -> Example:
    return Example(list(range(first, first + length)), [at >= prompt for at in range(length)])


def drawn(count: int, longest: int, seed: int) -> list[Example]:
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        length = rng.randint(2, longest)
        examples.append(made(length, 1000 * (number + 1), rng.randint(0, length - 1)))
    return examples


def documents(rows: PackedRows) -> list[tuple[list[int], list[bool]]]:
    """The documents as they lie in the rows, found token by token."""
    found = []
    for tokens_S, loss_S, documents_S in zip(rows.tokens_RS, rows.loss_RS, rows.documents_RS):
        for number in range(1, documents_S.max() + 1):
            place = np.flatnonzero(documents_S == number)
            assert place.tolist() == list(range(place[0], place[-1] + 1))
            found.append((tokens_S[place].tolist(), loss_S[place].tolist()))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_document_once_and_whole(seed):
    examples = drawn(200, 40, seed)
    rows = pack_examples(examples, 64)
    expected = [(list(example.ids), [False, *example.loss_mask[1:]]) for example in examples]
    assert sorted(documents(rows)) == sorted(expected)
    assert not rows.tokens_RS[rows.documents_RS == 0].any()
    assert not rows.loss_RS[rows.documents_RS == 0].any()
    report = rows.report
    tokens = sum(len(example.ids) for example in examples)
    assert (report.rows, report.documents, report.tokens) == (len(rows), 200, tokens)
    assert report.efficiency == tokens / (64 * len(rows)) > 0.97
    assert report.supervised == rows.loss_RS.sum()
    assert report.supervised_by_source == {"examples": report.supervised}
    assert report.documents_by_source == {"examples": 200}
    assert ((rows.sources_RS == 0) == (rows.documents_RS > 0)).all()


def test_types_and_shapes():
    rows = pack_examples(drawn(5, 20, 0), 32)
    assert rows.tokens_RS.dtype == rows.documents_RS.dtype == np.int32
    assert rows.loss_RS.dtype == bool
    assert rows.tokens_RS.shape == rows.loss_RS.shape == rows.documents_RS.shape
    assert rows.tokens_RS.shape[1] == 32


def test_packing_is_deterministic():
    first, second = (pack_examples(drawn(300, 60, 7), 64) for _ in range(2))
    assert (first.tokens_RS == second.tokens_RS).all()
    assert (first.documents_RS == second.documents_RS).all()


def test_best_fit_fills_rows_exactly():
    rows = pack_examples([made(length) for length in (3, 7, 5, 5, 2, 8)], 10)
    assert len(rows) == 3
    assert rows.report.efficiency == 1


def test_overlong():
    examples = [made(10, 100), made(20, 200), made(4, 300)]
    truncated = pack_examples(examples, 8)
    assert sorted(ids for ids, _ in documents(truncated)) == [
        list(range(100, 108)),
        list(range(200, 208)),
        list(range(300, 304)),
    ]
    assert truncated.report.truncated == 2
    dropped = pack({"": Examples(examples)}, 8, overlong="drop")
    assert [ids for ids, _ in documents(dropped.take([0]))] == [list(range(300, 304))]
    assert dropped.report.dropped_overlong == 2
    assert "2 dropped as too long" in str(dropped.report)
    assert examples[0] == made(10, 100)  # the input stays as it was


def test_nothing_left_to_learn():
    """A prompt as long as the row, an example without loss, and one whose only loss is first."""
    examples = [
        made(20, 100, prompt=8),
        made(5, 200, prompt=5),
        Example([1, 2], [True, False]),
        made(4),
    ]
    report = pack_examples(examples, 8).report
    assert (report.documents, report.dropped_unsupervised, report.truncated) == (1, 3, 1)
    with pytest.raises(BarError, match="none of 1 examples has anything to learn"):
        pack_examples(examples[:1], 8)
    with pytest.raises(BarError, match="none of 0 examples"):
        pack_examples([], 8)
    with pytest.raises(BarError, match="sequence_length is 1"):
        pack_examples(examples, 1)


def test_report_reads_well():
    report = pack_examples([made(5), made(4)], 10).report
    assert str(report) == "2 documents in 1 rows of 10, 9 tokens (90.0% full), 7 supervised"


def texts(*ids: list[int]) -> list[np.ndarray]:
    return [np.array([*some, EOS], np.int32) for some in ids]


def test_texts():
    rows = pack_texts(texts([1, 2, 3], [4], [5, 6, 7, 8, 9, 10]), 5)
    assert rows.tokens_RS.tolist() == [[1, 2, 3, EOS, 4], [EOS, 5, 6, 7, 8], [9, 10, EOS, 0, 0]]
    assert rows.documents_RS.tolist() == [[1, 1, 1, 1, 2], [1, 2, 2, 2, 2], [1, 1, 1, 0, 0]]
    assert rows.loss_RS.tolist() == [
        [False, True, True, True, False],
        [False, False, True, True, True],
        [False, True, True, False, False],
    ]
    assert (rows.report.documents, rows.report.tokens, rows.report.supervised) == (3, 13, 8)
    with pytest.raises(BarError, match="no tokens"):
        pack_texts([], 5)


def test_texts_that_fill_their_rows():
    rows = pack_texts(texts([1, 2, 3], [4, 5, 6]), 4)
    assert rows.documents_RS.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert rows.report.efficiency == 1


def test_batch_token_by_token():
    """Against plain loops over the definition."""
    rows = pack_examples(drawn(40, 20, 3), 24)
    batch = to_batch(rows, PAD)
    tokens, loss, documents = rows.tokens_RS, rows.loss_RS, rows.documents_RS
    for row in range(len(rows)):
        for t in range(24):
            document = documents[row, t]
            inside = t + 1 < 24 and document > 0 and documents[row, t + 1] == document
            assert batch.tokens_BS[row, t] == (tokens[row, t] if document else PAD)
            assert batch.labels_BS[row, t] == (tokens[row, t + 1] if inside else PAD)
            assert batch.loss_mask_BS[row, t] == (inside and loss[row, t + 1])
            assert batch.sources_BS[row, t] == (0 if inside else -1)
            start = documents[row].tolist().index(document)
            assert batch.positions_BS[row, t] == (t - start if document else 0)
            for s in range(24):
                hidden = s > t or documents[row, s] != document
                assert batch.attention_mask_B1SS[row, 0, t, s] == hidden
    assert batch.loss_mask_BS.sum() == rows.report.supervised
    assert not batch.attention_mask_B1SS.all(dim=-1).any(), "a row of the mask hides everything"


def test_batch_types():
    batch = to_batch(pack_texts(texts([1, 2, 3]), 6), PAD)
    assert batch.tokens_BS.dtype == batch.labels_BS.dtype == batch.positions_BS.dtype == torch.int64
    assert batch.loss_mask_BS.dtype == torch.float32
    assert batch.attention_mask_B1SS.dtype == torch.bool
    assert batch.attention_mask_B1SS.shape == (1, 1, 6, 6)
    assert batch.tokens_BS.tolist() == [[1, 2, 3, EOS, PAD, PAD]]
    assert batch.labels_BS.tolist() == [[2, 3, EOS, PAD, PAD, PAD]]
    assert batch.loss_mask_BS.tolist() == [[1, 1, 1, 0, 0, 0]]


def test_loss_never_crosses_documents():
    """Even if a mask claims that a document's first token carries loss."""
    rows = PackedRows(
        np.array([[1, 2, 3, 4]], np.int32),
        np.ones((1, 4), bool),
        np.array([[1, 1, 2, 2]], np.int32),
        np.zeros((1, 4), np.int16),
        PackReport(),
    )
    assert to_batch(rows, PAD).loss_mask_BS.tolist() == [[1, 0, 1, 0]]


def test_a_batch_of_some_rows():
    rows = pack_examples(drawn(60, 20, 1), 24)
    indices = np.array([2, 0, 2])
    some, whole = to_batch(rows.take(indices), PAD), to_batch(rows, PAD)
    assert torch.equal(some.tokens_BS, whole.tokens_BS[indices])
    assert torch.equal(some.loss_mask_BS, whole.loss_mask_BS[indices])
    assert not np.shares_memory(rows.take(indices).tokens_RS, rows.tokens_RS)


def test_sources_are_told_apart(tmp_path):
    """Which source each label is of, also after a way over the disk."""
    sources = {
        "math": Examples([made(5, 100), made(3, 200)]),
        "code": Examples([made(4, 300), made(9)]),
    }
    picks = [np.array([0, 1, 1]), np.array([0])]
    packed = pack(sources, 8, picks=picks)
    packed.save(tmp_path / "packed")
    loaded = PackedDocuments.load(tmp_path / "packed", sources)
    assert loaded.report == packed.report and len(loaded) == len(packed) == 2
    assert packed.report.documents_by_source == {"math": 3, "code": 1}
    assert packed.report.supervised_by_source == {"math": 4 + 2 + 2, "code": 3}
    rows = loaded.take(range(2))
    assert rows.source_names == ("math", "code")
    learned = to_batch(rows, PAD)
    labels = learned.labels_BS[learned.sources_BS == 1].tolist()
    assert labels == [301, 302, 303]
    labels = sorted(learned.labels_BS[learned.sources_BS == 0].tolist())
    assert labels == [101, 102, 103, 104, 201, 201, 202, 202]


def test_boundaries_say_what_the_mask_says():
    """Every pair of positions: the mask hides one from the other, or the boundaries do."""
    rows = pack_examples(drawn(40, 20, 3), 24)
    dense = to_batch(rows, PAD)
    flat = dense.in_one_sequence()
    assert flat.attention_mask_B1SS is None and dense.packed is None
    for name in ("tokens_BS", "labels_BS", "loss_mask_BS", "positions_BS", "sources_BS"):
        assert torch.equal(getattr(flat, name), getattr(dense, name).reshape(1, -1))
    params = flat.packed
    bounds = params.cu_seqlens_q.tolist()
    assert params.cu_seqlens_q.dtype == torch.int32 and bounds[0] == 0
    assert bounds[-1] == len(rows) * 24 and params.max_seqlen_q == max(np.diff(bounds))
    segment_BS = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)).reshape(-1, 24)
    causal_SS = np.tril(np.ones((24, 24), bool))
    seen_BSS = (segment_BS[:, :, None] == segment_BS[:, None, :]) & causal_SS
    assert (~dense.attention_mask_B1SS[:, 0].numpy() == seen_BSS).all()


def test_padding_leaves_the_rows_alone():
    rows = pack_texts(texts([1, 2, 3]), 6)
    to_batch(rows, PAD)
    assert rows.tokens_RS.tolist() == [[1, 2, 3, EOS, 0, 0]]


@pytest.mark.parametrize("longest, efficiency", [(2048, 0.99), (5000, 0.97)])
def test_many_documents(longest, efficiency):
    """Quick on as many documents as a real source has, and nearly full."""
    rng = random.Random(0)
    lengths = [min(longest, int(rng.lognormvariate(5.5, 1)) + 2) for _ in range(3000)]
    zeros, ones = np.zeros(longest, np.int32), np.ones(longest, bool)
    rows = pack_examples([Example(zeros[:length], ones[:length]) for length in lengths], 4096)
    assert rows.report.efficiency > efficiency
