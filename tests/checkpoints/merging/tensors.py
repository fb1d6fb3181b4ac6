"""Tensors of an anchor and branches that are given, not stored."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megatron_bar.checkpoints.merging.sources import Holder, SharedTensor
from megatron_bar.checkpoints.names import EMBEDDINGS_NAME


class Given:
    """Reads tensors that it is given, by name of a slot, in bands of `rows` rows."""

    def __init__(self, tensors, rows, folder="given"):
        self.tensors, self.rows, self.folder = tensors, rows, folder

    def bands(self, slot, numbers):
        return iter(self.tensors[slot.name].split(self.rows))


def shared(name, anchor, rows=2, **branches):
    """The tensor `name` of models, each a dict of tensors by name, in bands of `rows` rows."""

    def holder(called, tensors):
        slot = SimpleNamespace(name=name, label="w", hf_shapes=(tuple(tensors[name].shape),))
        return Holder(called, Given(tensors, rows), slot)

    return SharedTensor(
        holder("anchor", anchor),
        tuple(holder(called, tensors) for called, tensors in branches.items()),
    )


def numbers(anchor, *branches, rows=2):
    """One tensor of an anchor and of branches: lists of numbers."""
    one = EMBEDDINGS_NAME
    return shared(
        one,
        {one: torch.tensor(anchor)},
        rows,
        **{f"b{i}": {one: torch.tensor(branch)} for i, branch in enumerate(branches)},
    )


def made(rule, tensor):
    """What a rule makes, as a whole."""
    return torch.cat(list(rule(tensor)))
