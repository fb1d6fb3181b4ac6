"""Steps that a stage has saved, found out without loading anything."""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDER = "resume"
DAMAGED = "damaged"  # begins the name of a state that couldn't be gone on from, in there


def saved_steps(folder: Path) -> list[int]:
    """The steps after which a state of the stage in `folder` is saved, in order."""
    return sorted(
        int(path.name) for path in (Path(folder) / FOLDER).glob("*") if path.name.isdecimal()
    )


def remove_partial(folder: Path) -> None:
    """Remove what a kill left of states that were being written or removed."""
    for path in (Path(folder) / FOLDER).glob(".*"):
        shutil.rmtree(path)


def remove_saved(folder: Path) -> None:
    """Remove all of them: the stage has ended."""
    shutil.rmtree(Path(folder) / FOLDER, ignore_errors=True)
