"""Hooks that mend files find nothing to mend, so that a commit holds what its author changed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def _looked_at() -> list[Path]:
    """The files of the repository, but for those that the configuration leaves out."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no repository of git")
    names = [name for name in listed.stdout.splitlines() if not re.search(config["exclude"], name)]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_lines_and_files_end_as_the_hooks_want_it():
    files = _looked_at()
    assert ROOT / "README.md" in files
    for path in files:
        data = path.read_bytes()
        if data and b"\0" not in data:  # binary files are none of theirs
            assert data.endswith(b"\n") and not data.endswith(b"\n\n"), f"{path}: its end"
            assert not re.search(rb"[ \t]+$", data, re.MULTILINE), f"{path}: a blank ends a line"
