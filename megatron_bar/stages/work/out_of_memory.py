"""The message and the file of a stage that doesn't fit a GPU's memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from megatron_bar.checkpoints.number_types import compute_type, type_name
from megatron_bar.costs.fitting import keys_of, suggest_training
from megatron_bar.costs.memory import training_memory
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.groups import group_sizes, matching
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.profiling import FOLDER, write_memory_snapshot


@contextlib.contextmanager
def explain_out_of_memory(run: ModelRun, training: Training) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into a line that says what would fit.

    A snapshot of what was allocated is left in the stage's folder, on each rank that has the error.
    Raises BarError in its place.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        snapshot = write_memory_snapshot(run.folder / FOLDER)
        size = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        raise BarError(
            f"{run.label}: the GPU's {size / 2**30:.0f} GiB are too small for it in layout "
            f"{run.layout}; {smaller(run, training, size)}. {snapshot} has what was allocated, for "
            "pytorch.org/memory_viz"
        ) from error


def smaller(run: ModelRun, training: Training, size: int) -> str:
    """The keys that take least change of those that should fit into `size` bytes.

    They need less than what didn't fit by the same estimate, too, which may have been too low.
    """
    dtype = type_name(compute_type(training.dtype, run.start))
    training = dataclasses.replace(training, dtype=dtype)
    groups = matching(list(group_sizes(run.config)), training.trainable, run.label)
    estimate = training_memory(run.config, run.layout, training, groups).total
    found = suggest_training(
        run.config, run.layout, training, groups, min(size, round(0.9 * estimate))
    )
    return f"try {keys_of(found)}" if found else "give it more processes"
