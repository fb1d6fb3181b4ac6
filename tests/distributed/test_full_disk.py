"""A stage whose disk is too small, or fills up, says so, and goes on once there is room."""

from __future__ import annotations

import pytest

from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.disk import disk_of
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_digests
from tests.disks import enlarge, small_disk
from tests.distributed.stages import run, training
from tests.layouts import EXPERTS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

# A checkpoint of 0.6 MiB, states of 1.8 MiB.
SETTINGS = dict(groups=("*",), save_every=2, steps=6, keep=2)


def test_a_stage_that_can_not_end_does_not_begin(checkpoint, tmp_path):
    with small_disk(tmp_path / "disk", "512k") as disk:
        with pytest.raises(JobFailed) as raised:
            run(checkpoint, EXPERTS["dp2"], training(**SETTINGS), disk / "run")
        assert str(raised.value) == (
            f"test: {disk}/run/checkpoint can't be written: it needs 604.2 KiB, and the disk at "
            f"{disk} has 512.0 KiB free; make room, or set runs to a folder on another disk"
        )
        assert list((disk / "run").iterdir()) == []


@pytest.mark.parametrize("name, save_async", [("dp2", False), ("tp1", True)])
def test_no_room_for_the_next_state(name, save_async, checkpoint, tmp_path):
    settings = training(**SETTINGS, save_async=save_async)
    with small_disk(tmp_path / "disk", "3m") as disk:
        folder = disk / "run"
        with pytest.raises(JobFailed) as raised:
            run(checkpoint, EXPERTS[name], settings, folder, log=tmp_path / "log")
        assert str(raised.value).startswith(
            f"{folder}/resume/4 can't be written: it needs 1.8 MiB, and the disk at {disk} has "
        )
        assert str(raised.value).endswith(
            " free; the state after step 2 stands; make room and run it again"
        )
        said = (tmp_path / "log").read_text()
        assert f"warning: test: the disk at {disk} has 3.0 MiB free, and up to 5.9 MiB will" in said
        assert "Traceback" not in said
        assert [path.name for path in (folder / "resume").iterdir()] == ["2"]
        enlarge(disk, "32m")
        run(checkpoint, EXPERTS[name], settings, folder)
        run(checkpoint, EXPERTS[name], settings, tmp_path / "whole")
        assert group_digests(folder / "checkpoint") == group_digests(
            tmp_path / "whole" / "checkpoint"
        )


@pytest.mark.parametrize("name, save_async", [("dp2", False), ("tp1", True)])
def test_a_state_that_is_cut_short_leaves_nothing(name, save_async, checkpoint, tmp_path):
    """Others may write on the same disk: that there was room doesn't say that there is."""
    with pytest.raises(JobFailed) as raised:
        run(
            checkpoint,
            EXPERTS[name],
            training(**SETTINGS, save_async=save_async),
            tmp_path / "run",
            log=tmp_path / "log",
            longest_file=300_000,
        )
    # Of a writer that knows no more than that, as Megatron-Core's from 0.19 on, the second.
    where = f"{tmp_path}/run/resume/2 can't be written: the disk at {disk_of(tmp_path)} "
    assert str(raised.value).startswith(
        (
            where + "takes no file as large as that (",
            where + "took only a part of a file: it is full, or a limit is reached (",
        )
    )
    assert str(raised.value).endswith(
        " free), 1.8 MiB are needed; no state was saved before; make room and run it again"
    )
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert list((tmp_path / "run" / "resume").iterdir()) == []


def test_a_checkpoint_that_is_cut_short_leaves_the_states(checkpoint, tmp_path):
    """And what a killed save left is removed."""
    settings = training(**SETTINGS | {"groups": ("router.1",)})
    stale = tmp_path / "run" / "resume" / ".99.partial"
    stale.mkdir(parents=True)
    message = r"/checkpoint can't be written: the disk at .* 604.2 KiB are needed; the states that"
    with pytest.raises(JobFailed, match=message):
        run(checkpoint, Layout(), settings, tmp_path / "run", longest_file=100_000)
    assert sorted(path.name for path in (tmp_path / "run" / "resume").iterdir()) == ["2", "4"]
    assert not list((tmp_path / "run").glob("*checkpoint*"))
