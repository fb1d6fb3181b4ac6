"""The item that a rule makes of a shared tensor, and how far the models lie from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from megatron_bar.checkpoints.average import Sums
from megatron_bar.checkpoints.merging.sources import SharedTensor
from megatron_bar.checkpoints.plan import ItemContent

if TYPE_CHECKING:
    from megatron_bar.checkpoints.merging import Rule


@dataclass(frozen=True)
class Combined:
    """Makes a slot by a rule. Numbers in which all models agree keep their bits.

    Reports a Deviation: distances of the branches and the anchor from the merged tensor.
    """

    rule: Rule
    tensor: SharedTensor

    def __call__(self) -> ItemContent:
        facts: dict[str, Any] = {}
        sources = [
            (holder.reader.where(holder.slot), partial(holder.reader.read, holder.slot))
            for holder in self.tensor.holders
        ]
        return ItemContent([self._bands(facts)], sources, facts)

    def _bands(self, facts: dict[str, Any]) -> Iterator[torch.Tensor]:
        tensor = self.tensor
        sums = Sums(len(tensor.holders))
        for merged, (anchor, branches) in zip(self.rule(tensor), tensor.bands(), strict=True):
            merged = torch.where((branches == anchor).all(0), anchor, merged)
            sums.add([flat.reshape(-1) for flat in (*branches, anchor)], merged.reshape(-1))
            yield merged
        facts.update(
            group=tensor.name.group, tensor="/".join(tensor.anchor.slot.hf_names), **vars(sums)
        )
