"""A disk that can't take what is written is named, and nothing half-written stays."""

from __future__ import annotations

import errno
import resource
import shutil

import pytest

from megatron_bar.runtime import disk
from megatron_bar.runtime.disk import disk_fault, disk_of, explain_disk_faults, lacking
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json, write_json_lines


@pytest.mark.parametrize(
    "error, fault",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "lets you write no more (quota)"),
        (OSError(errno.EROFS, "Read-only file system"), "is read-only"),
        (RuntimeError("Worker failure: [Errno 28] No space left on device"), "is full"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
            "took only a part of a file: it is full, or a limit is reached",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (RuntimeError("CUDA out of memory"), None),
    ],
)
def test_what_an_error_says_of_the_disk(error, fault, tmp_path):
    assert disk_fault(error) == fault
    led_to_another = KeyError("exp_avg")
    led_to_another.__context__ = error
    with (
        pytest.raises(BarError if fault else KeyError) as raised,
        explain_disk_faults(tmp_path / "new" / "file", lambda: "; the last state stands"),
    ):
        raise led_to_another
    if fault:
        assert str(raised.value).startswith(
            f"{tmp_path}/new/file can't be written: the disk at {disk_of(tmp_path)} {fault} ("
        )
        assert str(raised.value).endswith(
            "free); the last state stands; make room and run it again"
        )


def test_a_fault_is_explained_once(tmp_path):
    with pytest.raises(BarError, match=r"^first$"), explain_disk_faults(tmp_path):
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise BarError("first") from error
        finally:
            raise ValueError("of closing a file")


def test_a_file_system_that_does_not_tell_its_size_is_not_full(tmp_path, monkeypatch):
    assert lacking(tmp_path / "file", 1) is None
    assert "it needs 1024.0 GiB, and the disk at" in lacking(tmp_path / "file", 1 << 40)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    assert lacking(tmp_path / "file", 1 << 40) is None


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, "x" * 100_000),
        lambda path: write_json_lines(path, ["x" * 100] * 1000),
    ],
    ids=["json", "lines"],
)
def test_a_file_that_does_not_fit_leaves_nothing(write, tmp_path):
    path = tmp_path / "file.json"
    path.write_text("as it was")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    assert path.read_text() == "as it was"
