"""Folders that are shared, moved or can't be written: one line each, and nothing is lost."""

from __future__ import annotations

import fcntl
import shutil
import subprocess

import pytest

from megatron_bar.cli import main
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.stages import at_work
from tests.disks import small_disk
from tests.launch.test_replacing import again, state

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


def _line(capsys) -> str:
    """The one line of ours; libraries may warn beside it."""
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("megatron-bar: ")]
    return line


def test_one_stage_is_computed_by_one(run, capsys, monkeypatch):
    """Two who start it by hand, or a job beside a run: the second leaves all as it is."""
    monkeypatch.setattr(at_work, "PATIENCE_SECONDS", 0.0)
    with open(run / ".math-sft.lock", "w") as file:
        file.write("ann on node7, process 8")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        before = state(run)
        assert main(["stage", str(run), "math/sft"]) == 1
        assert state(run) == before
    assert _line(capsys) == (
        f"megatron-bar: math/sft of {run} is computed by others (ann on node7, process 8)"
    )


def test_a_renamed_run_isnt_made_anew(run, tmp_path, capsys):
    path = run / "recipe.yaml"
    save_recipe(load_recipe(path, [f"runs={run.parent}"]), path)
    assert main(["run", str(path)]) == 0  # leaves its lock
    capsys.readouterr()
    moved = tmp_path / "elsewhere" / "better-name"
    moved.parent.mkdir()
    shutil.move(run, moved)
    before = state(moved)
    for command in ("run", "submit"):
        assert main([command, str(moved / "recipe.yaml")]) == 1
        said = _line(capsys)
        assert (
            f"is of the run {run}, which isn't there; to go on with what lies beside it give "
            f"name=better-name runs={moved.parent}, or move the folder back" in said
        )
    assert state(moved) == before and not run.exists()
    words = [str(moved / "recipe.yaml"), "name=better-name", f"runs={moved.parent}"]
    assert main(["run", *words]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_disk_that_became_read_only(run, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "64m") as disk:
        there = disk / "small"
        shutil.copytree(run, there)
        shutil.rmtree(there / "routed")
        before = state(there)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert again(there) == 1
        said = _line(capsys)
        assert "can't be written" in said and "Read-only file system" in said
        assert main(["stage", str(there), "routed"]) == 1
        assert "is read-only" in _line(capsys)
        assert state(there) == before
