"""The place of what stages print."""

from __future__ import annotations

from pathlib import Path


def log_path(run: Path, stage: str) -> Path:
    """The file of a stage's output: outside its folder, which is emptied when it starts anew."""
    return run / "logs" / f"{stage.replace('/', '-')}.txt"
