"""The result of a stage's work, computed one time, whatever kills the process after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from megatron_bar.runtime.distributed import is_main, on_main
from megatron_bar.runtime.files import read_json, write_json
from megatron_bar.training.saved import remove_saved

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULT_FILE = "trained.json"

Result = TypeVar("Result", bound="DataclassInstance")


def load_or_run(folder: Path, kind: type[Result], work: Callable[[], Result]) -> Result:
    """The result of `work`, a dataclass of the given kind: read from `folder`, or computed now.

    Called by every rank. The result is saved in `folder`; only then do the states go that the work
    would go on from, so a kill in between costs nothing.
    """
    path = folder / RESULT_FILE
    if not on_main(path.is_file):
        result = work()
        if is_main():
            write_json(path, dataclasses.asdict(result))
    if is_main():
        remove_saved(folder)
    return kind(**on_main(lambda: read_json(path)))
