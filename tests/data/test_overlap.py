"""Held-out items in training data: n-grams by hand, and against sets of words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from megatron_bar.data.ngrams import Words
from megatron_bar.data.overlap import Overlap

QUESTION = "a b c d e f g h i j k l"  # twelve words, five runs of eight


def _share(item: str, *texts: str) -> float:
    overlap = Overlap([item])
    for text in texts:
        overlap.add(Words.of([text]))
    return overlap.share_I[0]


@pytest.mark.parametrize(
    "text, share",
    [
        (QUESTION, 1.0),
        ("x y " + QUESTION + " z", 1.0),
        ("A, b; c... D!  e\nf (g) h -- then other words", 8 / 12),  # case and marks don't count
        ("x c d e f g h i j y", 8 / 12),
        ("c d e f g h i j k y", 9 / 12),  # two runs, which share seven words
        ("a b c d e f g", 0.0),  # seven words are no run
        ("", 0.0),
    ],
)
def test_the_share_of_words_in_runs_that_a_text_has(text, share):
    assert _share(QUESTION, text) == pytest.approx(share)


def test_runs_of_two_texts_do_not_add_up():
    """Nor does a run go on from one text into the next one."""
    long = " ".join(f"w{i}" for i in range(16))
    first, second = " ".join(long.split()[:8]), " ".join(long.split()[8:])
    assert _share(long, first, second) == 0.5
    assert _share(long, f"{first} {second}") == 1.0
    overlap = Overlap([long])
    overlap.add(Words.of([" ".join(long.split()[:5]), " ".join(long.split()[5:10])]))
    assert overlap.share_I[0] == 0


def test_short_items_are_looked_for_as_a_whole():
    overlap = Overlap(["What is 2 + 2?", "What is 7 + 5?", "..."])
    overlap.add(Words.of(["he asked what is 2 + 2 again", "what is 7+5"]))
    assert overlap.found.tolist() == [1] and overlap.text_I.tolist() == [-1, 1, -1]
    assert overlap.unexamined == 1  # without a word


def test_a_tasks_wording_is_no_evidence():
    wording = "please solve the following problem and show all of your steps"
    items = [f"{wording} n{i} m{i} o{i} p{i} q{i} r{i} s{i} t{i} u{i}" for i in range(40)]
    overlap = Overlap(items)
    overlap.add(Words.of([f"{wording} another one altogether"]))
    assert not overlap.share_I.any() and overlap.unexamined == 0
    overlap.add(Words.of([f"x {items[7]} y"]))
    assert overlap.found.tolist() == [7]


def test_random_texts_agree_with_sets_of_words():
    """Few different words, so that runs recur within items and over texts."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abc", k=draw.randint(0, 60))) for _ in range(60)]
    items, training = texts[:9], texts[9:]  # as many items may share a run as are its wording
    overlap = Overlap(items)
    overlap.add(Words.of(training[:20]))
    overlap.add(Words.of(training[20:]))
    for item, share in zip(items, overlap.share_I):
        words = item.split()
        best = 0.0
        for text in training:
            others = text.split()
            runs = {tuple(others[i : i + 8]) for i in range(len(others) - 7)}
            covered = set()
            for i in range(len(words) - 7):
                if tuple(words[i : i + 8]) in runs:
                    covered |= set(range(i, i + 8))
            best = max(best, len(covered) / max(1, len(words)))
            if len(words) < 8 and words == others and words:
                best = 1.0
        assert share == pytest.approx(best)


def test_hashes_tell_words_apart():
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "0123456789" for c in "uvwxyzäöüß"]
    found = Words.of([" ".join(words), "äÖ0 x"])
    assert len(set(found.hashes_W[:1000].tolist())) == 1000
    assert found.count_T.tolist() == [1000, 2]
    assert np.array_equal(Words.of(["x ab y"]).hashes_W[1:2], Words.of(["AB"]).hashes_W)
