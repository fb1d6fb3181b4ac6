"""Common parts of stages that train on rows of tokens, which are prepared before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_bar.recipe.fields import CHATS, TEXTS
from megatron_bar.runtime.known import known_sum
from megatron_bar.stages.stage import Reading
from megatron_bar.stages.training_stage import TrainingStage

if TYPE_CHECKING:
    import numpy as np

    from megatron_bar.data.store import StoredDocuments
    from megatron_bar.stages.context import Context


@dataclass(frozen=True, kw_only=True)
class RowsStage(TrainingStage):
    """A stage that trains on rows of tokens, which are prepared before."""

    FORM = CHATS
    BYTES_PER_TOKEN: ClassVar[float] = 5.0  # of files of conversations: JSON is around the text

    def each(self) -> Sequence[RowsStage]:
        """The domains' stages whose rows it trains on together, or the stage itself."""
        return [self]

    def readings(self) -> Iterator[Reading]:
        length = None if self.FORM == TEXTS else self.training.sequence_length
        for source in [*self.sources(), *self.training.validation]:
            yield Reading(self.name, source, self.FORM, length)

    def taken(self, stored: Mapping[str, StoredDocuments], seed: int) -> Mapping[str, np.ndarray]:
        """The documents that it takes of each source in an epoch, by the source's name."""
        from megatron_bar.data.mixture import picks

        sizes = [len(documents) for documents in stored.values()]
        return dict(zip(stored, picks(self.training.data, sizes, seed)))

    def steps(self) -> int | None:
        from megatron_bar.data.batches import planned_steps

        if (parts := self.each()) != [self]:
            return known_sum(part.steps() for part in parts)
        training = self.training
        if training.epochs is None:
            return planned_steps(training, rows_per_epoch=0)
        rows = self.file_rows()
        return None if rows is None else planned_steps(training, rows)

    def file_rows(self) -> int | None:
        """Rows of an epoch, from the bytes of its sources' files; None if one isn't here."""
        tokens = self.file_tokens()
        return None if tokens is None else math.ceil(tokens / self.training.sequence_length)

    def file_tokens(self) -> float | None:
        """Tokens of an epoch, from the bytes of its sources' files; None if one isn't here."""
        from megatron_bar.costs.amounts import tokens_in_files

        return tokens_in_files(self.sources(), self.BYTES_PER_TOKEN)

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.stages.work.train import train_from_start

        return train_from_start(context)
