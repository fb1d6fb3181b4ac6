"""Numbers of a training run: metrics.jsonl, one JSON object a line, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from megatron_bar.runtime.distributed import is_main


class Metrics:
    """Appends to `folder`/metrics.jsonl and `folder`/tensorboard, from one process.

    On a resume the lines past `first_step` are dropped: those steps are about to be done again.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._file = None
        self._board = None
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter

        path = Path(folder) / "metrics.jsonl"
        kept = [m for m in read_metrics(folder) if m["step"] <= first_step]
        self._file = open(path, "w", buffering=1)  # noqa: SIM115  (closed in __exit__)
        for line in kept:
            self._write(line)
        self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=first_step)

    def _write(self, numbers: dict) -> None:
        self._file.write(json.dumps(numbers) + "\n")

    def log(self, step: int, **numbers: float) -> None:
        if self._file is None:
            return
        self._write({"step": step, **numbers})
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def read_metrics(folder: Path) -> list[dict]:
    """The lines of `folder`/metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
