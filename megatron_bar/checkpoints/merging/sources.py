"""One tensor of the anchor and of every branch, as rules read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import Name, Slot

BAND = 2**20  # numbers of a model that are in memory at a time


@dataclass(frozen=True)
class Holder:
    """A model that holds the tensor, and the slot that it is there. `name` is a branch's domain."""

    name: str
    reader: CheckpointReader
    slot: Slot

    @property
    def folder(self) -> Path:
        return self.reader.folder

    def bands(self) -> Iterator[torch.Tensor]:
        return (band.float() for band in self.reader.bands(self.slot, BAND))


@dataclass(frozen=True)
class SharedTensor:
    """A tensor of the anchor and of the branches, in their order; shape `[R, ...]`, R rows.

    The rows past the vocabulary, which a checkpoint pads it with, are zero in all.
    """

    anchor: Holder
    branches: tuple[Holder, ...]

    @property
    def name(self) -> Name:
        return self.anchor.slot.name

    @property
    def label(self) -> str:
        return self.anchor.slot.label

    @property
    def numel(self) -> int:
        """Numbers in it, without padding."""
        return sum(torch.Size(shape).numel() for shape in self.anchor.slot.hf_shapes)

    @property
    def holders(self) -> tuple[Holder, ...]:
        return (self.anchor, *self.branches)

    def bands(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some rows of the anchor `[r, ...]` and of the branches `[N, r, ...]`, in fp32, and so on
        to the last row."""
        for anchor, *branches in zip(*(holder.bands() for holder in self.holders), strict=True):
            yield anchor, torch.stack(branches)

    def changes(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same, with the branches' changes `[N, r, ...]`: what they are less the anchor."""
        for anchor, branches in self.bands():
            yield anchor, branches.sub_(anchor)
