"""A disk that fills up under a run is told in one line by the public command."""

from __future__ import annotations

import re

import pytest
import yaml

from megatron_bar.cli import main
from tests.disks import small_disk
from tests.launch.conftest import small_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    "size, message",
    [
        ("20k", r"is full \((0 B|4\.0 KiB) free\); what the stage saved before stands; make room"),
        ("1m", r"has 9\d\d\.0 KiB free; make room, or set runs to a folder on another disk"),
    ],
)
def test_a_run_on_a_disk_that_is_too_small(size, message, tmp_path, capsys):
    """For its first small files, and for its checkpoint."""
    with small_disk(tmp_path / "disk", size) as disk:
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe(disk)))
        assert main(["run", str(tmp_path / "small.yaml")]) == 1
        shown = capsys.readouterr()
        assert len(shown.err.strip().splitlines()) == 1 and "Traceback" not in shown.out
        assert re.search(f"the disk at {disk} {message}", shown.err)


def test_a_command_whose_disk_is_full_before_anything_runs(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "16k") as disk:
        (disk / "filled").write_bytes(b"0" * 16384)
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe(disk)))
        assert main(["run", str(tmp_path / "small.yaml")]) == 1
        shown = capsys.readouterr()
        assert len(shown.err.strip().splitlines()) == 1
        assert "can't be written: its disk is full; make room and run it again" in shown.err
