"""AdamW's second moments of a branch's shared parameters, which a stage leaves for a merge.

They lie in the checkpoint's folder, in the format of one, and each layer's tensor has a key of its
own, as in a resume point.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import Slot
from megatron_bar.checkpoints.resume_point import Slice

FOLDER = "second_moments"
PREFIX = "optimizer.state.exp_avg_sq"


class SecondMoments:
    """Second moments that were left with the checkpoint in a folder, if any."""

    def __init__(self, checkpoint: Path) -> None:
        folder = Path(checkpoint) / FOLDER
        self._reader = CheckpointReader(folder) if folder.is_dir() else None

    def bands(self, slot: Slot, numbers: int) -> Iterator[torch.Tensor] | None:
        """Second moments of the slot, in bands as `CheckpointReader.bands` has them.

        None where it was frozen.
        """
        key = Slice(".".join((PREFIX, slot.key, *map(str, slot.index))), slot.shape)
        if self._reader is None or not self._reader.has(key.key):
            return None
        return self._reader.bands(key, numbers)
