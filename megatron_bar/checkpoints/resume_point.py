"""A training stage's resume point, read as a model: what trains, over what the stage started from.

A resume point holds the tensors that train, each layer's and each expert's under a key of its own,
beside the optimizer's. `start.json` says where the others are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.checkpoints.dcp import CheckpointReader, Readable
from megatron_bar.checkpoints.names import ROUTER_NAME
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json

START_FILE = "start.json"


def write_start(folder: Path, start: Path | None) -> None:
    """Make the resume point `folder` know the checkpoint that its stage started from, if any."""
    where = None if start is None else os.path.relpath(start, folder)
    write_json(Path(folder) / START_FILE, {"checkpoint": where})


def open_checkpoint(folder: Path) -> CheckpointReader:
    """A reader of a checkpoint or of a resume point. Raises BarError for anything else."""
    if (Path(folder) / START_FILE).is_file():
        return ResumePointReader(folder)
    return CheckpointReader(folder)


@dataclass(frozen=True)
class Slice:
    """A tensor that has a key of its own, as CheckpointReader sees a slot."""

    key: str
    shape: tuple[int, ...]
    index: tuple[int, ...] = ()

    @property
    def global_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def label(self) -> str:
        return self.key


class ResumePointReader(CheckpointReader):
    """Reads slots of the model as it was when the state was saved.

    It has the types of the start, as the stage's checkpoint will (`number_types`); where the stage
    started from none, those that it computes in.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        start = read_json(self.folder / START_FILE)["checkpoint"]
        self._start = None if start is None else open_checkpoint(self.folder / start)
        self._dtypes = {
            key.rstrip(".0123456789"): tensor.dtype for key, tensor in self._index.tensors.items()
        }

    def dtype(self, slot: Readable) -> torch.dtype:
        if self._start is None and slot.key in self._dtypes:
            return self._dtypes[slot.key]
        return self._before(slot).dtype(slot)

    def recorded_digest(self, slot: Readable) -> str | None:
        return None if self._trained(slot) else self._before(slot).recorded_digest(slot)

    def where(self, slot: Readable) -> str:
        trained = self._trained(slot)
        return (
            super().where(next(iter(trained.values())))
            if trained
            else (self._before(slot).where(slot))
        )

    def read(self, slot: Readable) -> torch.Tensor:
        dtype = self.dtype(slot)
        trained = {
            row: super(ResumePointReader, self).read(slice_).to(dtype)
            for row, slice_ in self._trained(slot).items()
        }
        if not trained:
            return self._before(slot).read(slot)
        if not _by_row(slot):
            return trained[0]
        if len(trained) < slot.shape[0]:
            trained = dict(enumerate(self._before(slot).read(slot))) | trained
        return torch.stack([trained[row] for row in range(slot.shape[0])])

    def bands(self, slot: Readable, numbers: int) -> Iterator[torch.Tensor]:
        trained = self._trained(slot)
        if not trained:
            return self._before(slot).bands(slot, numbers)
        if _by_row(slot):
            return iter([self.read(slot)])  # a router is small
        dtype = self.dtype(slot)
        return (band.to(dtype) for band in super().bands(trained[0], numbers))

    def _trained(self, slot: Readable) -> dict[int, Slice]:
        """What the resume point has of `slot`: of a router by row, of others whole, under 0."""
        key = ".".join((slot.key, *map(str, slot.index)))
        if _by_row(slot):
            slices = {row: Slice(f"{key}.{row}", slot.shape[1:]) for row in range(slot.shape[0])}
        else:
            slices = {0: Slice(key, slot.shape)}
        return {row: s for row, s in slices.items() if s.key in self._index.tensors}

    def _before(self, slot: Readable) -> CheckpointReader:
        if self._start is None:
            raise BarError(
                f"{self.folder}: tensor {slot.label} is missing, and the stage started "
                "from no checkpoint"
            )
        return self._start


def _by_row(slot: Readable) -> bool:
    """Whether each row trains by itself, as those of a router do, one for each expert."""
    return slot.key == ROUTER_NAME.key
