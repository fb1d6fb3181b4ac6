"""A disk that fills up under a run is told in one line by the public command."""

from __future__ import annotations

import pytest
import yaml

from megatron_bar.cli import main
from tests.disks import small_disk
from tests.launch.conftest import small_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


def test_a_run_on_a_disk_that_is_too_small(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "1m") as disk:
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe(disk)))
        assert main(["run", str(tmp_path / "small.yaml")]) == 1
        shown = capsys.readouterr()
        assert len(shown.err.strip().splitlines()) == 1 and "Traceback" not in shown.out
        assert f"the disk at {disk} has" in shown.err and "make room" in shown.err
        assert not list((disk / "small" / "base").glob("*checkpoint*"))


def test_a_command_whose_disk_is_full_before_anything_runs(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "16k") as disk:
        (disk / "filled").write_bytes(b"0" * 16384)
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe(disk)))
        assert main(["run", str(tmp_path / "small.yaml")]) == 1
        shown = capsys.readouterr()
        assert len(shown.err.strip().splitlines()) == 1
        assert "can't be written: its disk is full; make room and run it again" in shown.err
