"""A file that asks a run or a stage to stop, where signals don't get through.

SLURM, a container or a library may keep a signal from the ranks; what a shared file system shows
they see wherever they are.
"""

from __future__ import annotations

from pathlib import Path

STOP_FILE = "STOP"
_RECIPE = "recipe.yaml"  # in a run's folder


def stop_file_in(*folders: Path) -> Path | None:
    """The first stop file that lies in one of `folders`, or None."""
    paths = (folder / STOP_FILE for folder in folders)
    return next((path for path in paths if path.exists()), None)


def run_of(stage_folder: Path) -> Path | None:
    """The folder of the run that a stage's folder belongs to; None for one outside of any run."""
    return next(
        (folder for folder in stage_folder.absolute().parents if (folder / _RECIPE).is_file()), None
    )
