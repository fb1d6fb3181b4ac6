"""Held-out items that training data give away: texts that share many runs of words with one.

As in Tulu 3 (arXiv 2411.15124), whose data BAR's are made of: an item overlaps with a text of
training if half of its words or more are part of runs of 8 words that the text has too. What many
items of a task have in common is the task's wording and doesn't count. An item of fewer than 8
words overlaps with a text that is the same words.

Shapes: I items, G n-grams of items, K different ones, H hits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_bar.data.ngrams import Words

N = 8
SHARE = 0.5
# A run of words in more items of a task than this, and than this share of them, is its wording.
_WORDING, _WORDING_SHARE = 10, 0.1


class Overlap:
    """The items of one task, and how much of each has been seen in training so far.

    `share_I` is the largest share of an item's words in one text, `text_I` the number of that text,
    counted from the first that was added, or -1.
    """

    def __init__(self, items: Sequence[str]) -> None:
        words = Words.of(items)
        starts_I = np.concatenate([[0], np.cumsum(words.count_T)[:-1]])
        hashes_G, first_G = words.ngrams(N)
        item_G = words.text_W[first_G]
        keys_K, key_G = np.unique(hashes_G, return_inverse=True)
        used_in_K = np.bincount(
            np.unique(np.stack([key_G, item_G]), axis=1)[0], minlength=len(keys_K)
        )
        own_G = used_in_K[key_G] <= max(_WORDING, _WORDING_SHARE * len(items))
        self._keys_K, key_G = np.unique(hashes_G[own_G], return_inverse=True)
        order = np.argsort(key_G, kind="stable")
        # By key: the items that have it, and where.
        self._item_G = item_G[own_G][order]
        self._place_G = (first_G - starts_I[item_G])[own_G][order]
        self._count_K = np.bincount(key_G, minlength=len(self._keys_K))
        self._start_K = np.cumsum(self._count_K) - self._count_K
        self._words_I = np.zeros(len(items))
        _, item, covered = _covered(np.zeros_like(self._item_G), self._item_G, self._place_G)
        self._words_I[item] = covered
        short, wholes_I = np.flatnonzero((words.count_T > 0) & (words.count_T < N)), words.wholes()
        self._whole = {h: short[wholes_I[short] == h] for h in np.unique(wholes_I[short])}
        self.share_I = np.zeros(len(items))
        self.text_I = np.full(len(items), -1)
        self._texts = 0

    @property
    def unexamined(self) -> int:
        """Items without words, or with none but the task's wording."""
        short = sum(len(items) for items in self._whole.values())
        return len(self.share_I) - short - int((self._words_I > 0).sum())

    @property
    def found(self) -> np.ndarray:
        """The items that overlap with a text of training."""
        return np.flatnonzero(self.share_I >= SHARE)

    def add(self, words: Words) -> None:
        """Look for the items in more texts of training."""
        if len(self._keys_K):
            self._add_ngrams(words)
        if self._whole:
            wholes_T = words.wholes()
            for text in np.flatnonzero(np.isin(wholes_T, list(self._whole))):
                self._note(self._whole[wholes_T[text]], np.ones(1), np.array([text]))
        self._texts += words.texts

    def _add_ngrams(self, words: Words) -> None:
        hashes, first = words.ngrams(N)
        place = np.searchsorted(self._keys_K, hashes).clip(max=len(self._keys_K) - 1)
        hit = self._keys_K[place] == hashes
        text_H, key_H = np.unique(np.stack([words.text_W[first[hit]], place[hit]]), axis=1)
        count_H = self._count_K[key_H]
        within = np.arange(count_H.sum()) - np.repeat(np.cumsum(count_H) - count_H, count_H)
        at = np.repeat(self._start_K[key_H], count_H) + within
        text, item, covered = _covered(
            np.repeat(text_H, count_H), self._item_G[at], self._place_G[at]
        )
        self._note(item, covered / self._words_I[item], text)

    def _note(self, items: np.ndarray, shares: np.ndarray, texts: np.ndarray) -> None:
        items, shares, texts = np.broadcast_arrays(items, shares, texts)
        for item, share, text in sorted(zip(items, shares, texts), key=lambda found: found[1]):
            if share > self.share_I[item]:
                self.share_I[item], self.text_I[item] = share, self._texts + text


def _covered(
    text_H: np.ndarray, item_H: np.ndarray, place_H: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text and item that share n-grams: the two, and the words these cover."""
    if not len(text_H):
        return text_H, item_H, place_H
    order = np.lexsort((place_H, item_H, text_H))
    text_H, item_H, place_H = text_H[order], item_H[order], place_H[order]
    goes_on = (text_H[1:] == text_H[:-1]) & (item_H[1:] == item_H[:-1])
    adds_H = np.append(np.where(goes_on, np.minimum(place_H[1:] - place_H[:-1], N), N), N)
    firsts = np.concatenate([[0], np.flatnonzero(~goes_on) + 1])
    return text_H[firsts], item_H[firsts], np.add.reduceat(adds_H, firsts)
