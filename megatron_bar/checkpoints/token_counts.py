"""Counts of the tokens that a branch has read, over all of its stages; they go with a checkpoint.

What `merge.shared: row_wise` weighs a token's rows by. Weights tell less: a head's rows move at
each step, whether their token occurs or not, and embeddings that a stage freezes don't move.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_bar.runtime.files import staging_path

FILE = "token_counts.npy"


def read_token_counts(checkpoint: Path) -> np.ndarray | None:
    """Read the counts `[V]`, V tokens of the vocabulary; None where no stage has left any."""
    path = Path(checkpoint) / FILE
    return np.load(path) if path.is_file() else None


def write_token_counts(checkpoint: Path, counts_V: np.ndarray) -> None:
    """Put the counts into the checkpoint's folder, whole, in place of what is there."""
    path = Path(checkpoint) / FILE
    staged = staging_path(path)
    with staged.open("wb") as file:
        np.save(file, counts_V)
    staged.rename(path)
