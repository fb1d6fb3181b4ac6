"""Where what stages print is kept."""

from __future__ import annotations

from pathlib import Path


def log_path(run: Path, stage: str) -> Path:
    """Where a stage's output goes: outside its folder, which is emptied when it starts anew."""
    return run / "logs" / f"{stage.replace('/', '-')}.txt"
