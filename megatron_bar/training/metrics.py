"""Numbers of a training run: metrics.jsonl, one JSON object a line, TensorBoard, and if asked for
Weights & Biases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_bar.runtime.ranks import is_main
from megatron_bar.training.step_lines import StepLines, read_lines

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Appends to `folder`/metrics.jsonl and `folder`/tensorboard, from one process.

    On a resume the lines past `first_step` are dropped: those steps are about to be done again.
    `wandb` is a Weights & Biases project; the run there goes by the folder's name.
    """

    def __init__(self, folder: Path, first_step: int = 0, wandb: str | None = None) -> None:
        self._lines = None
        self._board = None
        self._wandb = None
        self._open = contextlib.ExitStack()
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(folder)
        self._lines = self._open.enter_context(StepLines(folder / METRICS_FILE, first_step))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._open.callback(self._board.close)
        if wandb is not None:
            self._wandb = _wandb_run(wandb, folder)
            self._open.callback(self._wandb.finish)

    def log(self, step: int, **numbers: Any) -> None:
        """Write the numbers of a step; a list of them, or of lists, is one series an element."""
        if self._lines is None:
            return
        self._lines.add(step, **numbers)
        flat = dict(_flat(numbers))
        for name, value in flat.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(flat, step=step)

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


def _wandb_run(project: str, folder: Path) -> Any:
    """It has not been run against the service: the documented init, log and finish."""
    import wandb

    name = "-".join(folder.parts[-3:])
    return wandb.init(project=project, name=name, id=name, resume="allow", dir=str(folder))


def read_metrics(folder: Path) -> list[dict]:
    """The lines of `folder`/metrics.jsonl; a last line cut short by a kill is left out."""
    return read_lines(Path(folder) / METRICS_FILE)
