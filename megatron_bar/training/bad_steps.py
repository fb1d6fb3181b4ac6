"""Bad steps: a loss or gradient that isn't a number, or a gradient spike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from megatron.core import parallel_state

from megatron_bar.data.batch import Batch
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import all_reduce_any, of_all_ranks
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.resume import Progress

WINDOW = 64  # good steps that the median of gradient norms runs over
SETTLED = 8  # good steps before a spike can be recognised
NAMED = 8  # rows of a bad step in its report


class BadStepCheck:
    """Judges each step before the optimizer sees it, by the settings of the stage.

    What it remembers is in `progress`, so that a resumed run judges alike.
    """

    def __init__(self, training: Training, progress: Progress, what: str) -> None:
        self.training = training
        self.progress = progress
        self.what = what

    def fault(self, loss: float, gradient_norm: float) -> str | None:
        """The fault of a step, or None."""
        if not math.isfinite(loss):
            return "the loss is not a number"
        if not math.isfinite(gradient_norm):
            return "the gradient is not a number"
        norms = self.progress.gradient_norms
        if self.training.spike is None or len(norms) < SETTLED:
            return None
        usual = statistics.median(norms)
        if gradient_norm <= self.training.spike * usual:
            return None
        return f"the gradient norm is {gradient_norm:.3g}, and its median {usual:.3g}"

    def passes(
        self, step: int, loss: float, gradient_norm: float, items: Callable[[], str]
    ) -> bool:
        """Whether the optimizer may use this step's gradients; False means to skip it.

        `items` tells, when it is asked for, what the step was computed from. All ranks call this.

        Raises BarError where a bad step is to stop the stage, and after too many in a row.
        """
        fault = self.fault(loss, gradient_norm)
        progress = self.progress
        # The numbers are the same on every rank; one that saw others must not go its own way.
        if not all_reduce_any(fault is not None):
            progress.skipped_in_a_row = 0
            progress.gradient_norms = [*progress.gradient_norms, gradient_norm][-WINDOW:]
            return True
        report = f"{self.what}: {fault or 'another rank saw a fault'} at step {step} ({items()})"
        if self.training.on_bad_step == "stop":
            raise BarError(f"{report}; look at these items, lower lr, or set on_bad_step: skip")
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row > self.training.max_skips:
            raise BarError(
                f"{report}, after {self.training.max_skips} skipped steps in a row; "
                "lower lr or look at the data"
            )
        say(f"{report}: skipped")
        return False


def describe_items(
    indices: np.ndarray,
    batches: Sequence[Batch],
    row_losses: Sequence[float],
    source_names: Sequence[str],
) -> str:
    """The rows of a bad step: those without a finite loss, or else those with the largest.

    Each is named by its index in the stage's data and the sources it holds. `indices` and
    `row_losses` are this rank's, row by row of `batches`. Every rank calls this.
    """
    sources_of = [
        sorted(set(row_S.tolist()) - {-1})
        for batch in batches
        for row_S in batch.by_row(batch.sources_BS)
    ]
    mine = [
        (loss, int(index), "+".join(source_names[s] for s in sources))
        for loss, index, sources in zip(row_losses, indices, sources_of)
    ]
    ranks = of_all_ranks(mine, parallel_state.get_data_parallel_group())
    rows = [row for rank in ranks for row in rank]
    named = [row for row in rows if not math.isfinite(row[0])]
    named = named or sorted(rows, reverse=True)
    text = ", ".join(f"{index} of {source}" for _, index, source in named[:NAMED])
    more = len(named) - NAMED
    return f"rows {text}{f' and {more} more' if more > 0 else ''}"
