"""How often a branch has read each token, over all of its stages; it goes along with a checkpoint.

What `merge.shared: row_wise` weighs a token's rows by. Weights tell less: a head's rows move at
each step, whether their token occurs or not, and embeddings that a stage freezes don't move.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_bar.runtime.files import staging_path

FILE = "token_counts.npy"


def read_token_counts(checkpoint: Path) -> np.ndarray | None:
    """Counts `[V]`, V tokens of the vocabulary; None where no stage has left any."""
    path = Path(checkpoint) / FILE
    return np.load(path) if path.is_file() else None


def write_token_counts(checkpoint: Path, counts_V: np.ndarray) -> None:
    path = Path(checkpoint) / FILE
    staged = staging_path(path)
    with staged.open("wb") as file:
        np.save(file, counts_V)
    staged.rename(path)
