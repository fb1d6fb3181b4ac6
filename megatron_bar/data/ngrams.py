"""Runs of n words that texts have in common, found by hashes and without a loop over words.

A word is letters and digits beside each other, in lower case; what stands between words doesn't
count. Shapes: B bytes, W words, G n-grams, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_IN_WORD = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])
_BYTE, _PLACE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F  # odd, so that powers can be undone
_MIX = np.uint64(0xFF51AFD7ED558CCD)


@dataclass(frozen=True)
class Words:
    """The words of some texts, in order."""

    hashes_W: np.ndarray
    text_W: np.ndarray  # which text each is of
    texts: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """Find the words of `texts`; takes some 40 bytes of memory for each of their bytes."""
        encoded = [text.lower().encode("utf-8", "replace") for text in texts]
        bytes_B = np.frombuffer(b" ".join(encoded), np.uint8)
        inside_B = np.concatenate([[False], _IN_WORD[bytes_B], [False]])
        edges = np.flatnonzero(inside_B[1:] != inside_B[:-1])
        starts_W, ends_W = edges[::2], edges[1::2]
        # A polynomial of the bytes from the start: the difference of two is a word's, once it is
        # moved to the place 0.
        sums_B = np.zeros(len(bytes_B) + 1, np.uint64)
        np.cumsum((bytes_B + np.uint64(1)) * _powers(_BYTE, len(bytes_B)), out=sums_B[1:])
        back_B = _powers(pow(_BYTE, -1, 2**64), len(bytes_B))
        hashes_W = _mixed((sums_B[ends_W] - sums_B[starts_W]) * back_B[starts_W])
        text_starts = np.cumsum([0, *(len(text) + 1 for text in encoded)])
        return cls(hashes_W, np.searchsorted(text_starts, starts_W, "right") - 1, len(encoded))

    @property
    def count_T(self) -> np.ndarray:
        """Words of each text."""
        return np.bincount(self.text_W, minlength=self.texts)

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes `[G]` of all n words in a row within one text, and the place of each's first."""
        first_G = np.flatnonzero(
            self.text_W[n - 1 :] == self.text_W[: len(self.text_W) - n + 1]
            if len(self.text_W) >= n
            else []
        )
        powers = _powers(_PLACE, n)
        hashes_G = np.zeros(len(first_G), np.uint64)
        for place in range(n):
            hashes_G += self.hashes_W[first_G + place] * powers[place]
        return _mixed(hashes_G), first_G

    def wholes(self) -> np.ndarray:
        """A hash of each text's words together `[T]`; 0 of a text without any."""
        count_T, hashes_T = self.count_T, np.zeros(self.texts, np.uint64)
        some = np.flatnonzero(count_T)
        if len(some):
            firsts = np.concatenate([[0], np.cumsum(count_T[some])[:-1]])
            places_W = np.arange(len(self.text_W)) - np.repeat(firsts, count_T[some])
            powers = _powers(_PLACE, int(count_T.max()))
            hashes_T[some] = _mixed(np.add.reduceat(self.hashes_W * powers[places_W], firsts))
        return hashes_T


def _powers(base: int, count: int) -> np.ndarray:
    """base ** 0, base ** 1 and so on, modulo 2 ** 64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """High bits brought into the low ones, which products of odd numbers hardly reach."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * _MIX
    return hashes ^ (hashes >> np.uint64(29))
