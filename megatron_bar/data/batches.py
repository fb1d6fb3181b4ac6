"""Rows of each step's batch: a function of the seed and the step alone.

Nothing has to be saved to resume, and no parallel layout changes what a step sees.
"""

from __future__ import annotations

import math

import numpy as np

from megatron_bar.data.rows import Rows
from megatron_bar.recipe.training import Training
from megatron_bar.recipe.units import token_count
from megatron_bar.runtime.errors import BarError


def planned_steps(training: Training, rows_per_epoch: int) -> int:
    """The number of optimizer steps a stage takes: as `steps`, `epochs` or `tokens` say."""
    if training.steps is not None:
        return training.steps
    if training.tokens is not None:
        batch_tokens = training.global_batch_size * training.row_length
        return math.ceil(token_count(training.tokens) / batch_tokens)
    assert training.epochs is not None  # one of the three is given
    # The tolerance keeps 0.1 * 30 rows from becoming a step more than 3.
    return max(1, math.ceil(training.epochs * rows_per_epoch / training.global_batch_size - 1e-6))


def check_shares(global_batch_size: int, ranks: int, micro_batch_size: int) -> None:
    """Raise BarError unless every rank gets the same number of whole micro batches."""
    if global_batch_size % (ranks * micro_batch_size):
        raise BarError(
            f"global_batch_size {global_batch_size} can't be shared by {ranks} data-parallel ranks "
            f"in micro batches of {micro_batch_size}; "
            f"make it a multiple of {ranks * micro_batch_size}"
        )


def check_length(sequence_length: int, context: int) -> None:
    """Raise BarError unless `context` ranks can share a row, two equal slices each."""
    if context > 1 and sequence_length % (2 * context):
        raise BarError(
            f"rows of {sequence_length} tokens can't be shared by layout.context {context}; make "
            f"sequence_length a multiple of {2 * context}"
        )


class Batches:
    """Batches of row indices. Each epoch is a permutation; the next one follows without a gap.

    A batch may therefore hold the last rows of an epoch and the first of the next. Without a seed
    the rows are taken as they lie.

    Raises BarError if there are no rows, or the batch size isn't positive.
    """

    @classmethod
    def of(cls, rows: Rows, global_batch_size: int, seed: int) -> Batches:
        """The batches of `rows`, shuffled unless they lie in the order to train in."""
        return cls(len(rows), global_batch_size, None if rows.ordered else seed)

    def __init__(self, rows: int, global_batch_size: int, seed: int | None) -> None:
        if rows < 1:
            raise BarError("there are no rows to train on; check the data of the stage")
        if global_batch_size < 1:
            raise BarError(f"global_batch_size is {global_batch_size}; give at least 1")
        self.rows = rows
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        """The rows of a step, counted from 0."""
        first = step * self.global_batch_size
        place = np.arange(first, first + self.global_batch_size, dtype=np.int64)
        if self.seed is None:
            return place % self.rows
        epochs = place // self.rows
        return np.concatenate(
            [
                self._permutation(int(epoch))[place[epochs == epoch] % self.rows]
                for epoch in np.unique(epochs)
            ]
        )

    def share(self, step: int, rank: int, size: int, micro_batch_size: int = 1) -> np.ndarray:
        """The rows of one data-parallel rank: a slice of the step's batch.

        Raises BarError unless every rank gets the same number of whole micro batches.
        """
        check_shares(self.global_batch_size, size, micro_batch_size)
        share = self.global_batch_size // size
        return self.indices(step)[rank * share : (rank + 1) * share]

    def micro_batches(self, step: int, rank: int, size: int, micro_batch_size: int) -> np.ndarray:
        """A rank's rows, a micro batch in each row of the array. Raises BarError as `share`."""
        share = self.share(step, rank, size, micro_batch_size)
        return share.reshape(-1, micro_batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        """The order of an epoch. The last few are kept: at most these are asked for again."""
        if epoch not in self._permutations:
            if len(self._permutations) > 4:
                self._permutations.clear()
            assert self.seed is not None  # without one nothing is shuffled
            # numpy promises that RandomState's streams never change between its versions.
            state = np.random.RandomState([self.seed % 2**32, epoch % 2**32])
            self._permutations[epoch] = state.permutation(self.rows)
        return self._permutations[epoch]
