"""Files of JSON lines, one a step or more, that a resumed stage goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_bar.runtime.files import write_json_lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of `path`, none where it isn't there, without a last one that a kill cut short."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


class StepLines:
    """Appends to `path`, from one process.

    The lines past step `done` are dropped, in one step: those steps are about to be done again.
    """

    def __init__(self, path: Path, done: int) -> None:
        write_json_lines(path, [line for line in read_lines(path) if line["step"] <= done])
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  (closed in __exit__)

    def add(self, step: int, **content: Any) -> None:
        self._file.write(json.dumps({"step": step, **content}) + "\n")

    def __enter__(self) -> StepLines:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
