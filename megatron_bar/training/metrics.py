"""Numbers of a training run: metrics.jsonl, one JSON object a line, TensorBoard, and trackers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_bar.recipe.training import Training
from megatron_bar.runtime.ranks import is_main
from megatron_bar.training.step_lines import StepLines, read_lines
from megatron_bar.training.trackers import Trackers

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Appends to `folder`/metrics.jsonl and `folder`/tensorboard, from one process.

    On a resume the lines past `first_step` are dropped: those steps are about to be done again.
    The trackers that `training` asks for get the numbers too.
    """

    def __init__(self, folder: Path, first_step: int = 0, training: Training | None = None) -> None:
        self._lines: StepLines | None = None
        self._open = contextlib.ExitStack()
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(folder)
        self._lines = self._open.enter_context(StepLines(folder / METRICS_FILE, first_step))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._open.callback(self._board.close)
        self._trackers = Trackers(training or Training(), folder)
        self._open.callback(self._trackers.close)

    def log(self, step: int, **numbers: Any) -> None:
        """Write the numbers of a step; a list of them, or of lists, is one series an element."""
        if self._lines is None:
            return
        self._lines.add(step, **numbers)
        flat = dict(_flat(numbers))
        for name, value in flat.items():
            self._board.add_scalar(name, value, step)
        self._trackers.log(step, flat)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def _flat(numbers: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(numbers, (dict, list)):
        items = numbers.items() if isinstance(numbers, dict) else enumerate(numbers)
        for key, value in items:
            yield from _flat(value, f"{name}/{key}" if name else str(key))
    else:
        yield name, numbers


def read_metrics(folder: Path) -> list[dict]:
    """The lines of `folder`/metrics.jsonl; a last line cut short by a kill is left out."""
    return read_lines(Path(folder) / METRICS_FILE)
