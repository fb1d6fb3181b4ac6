"""Bytes that go past the page cache are the same bytes, wherever they begin and end."""

from __future__ import annotations

import errno
import fcntl
import os

import numpy as np
import pytest

from megatron_bar.checkpoints import direct
from megatron_bar.checkpoints.direct import DirectFile

PAGE = os.sysconf("SC_PAGESIZE")


def _refuse_direct(monkeypatch):
    """A file system that opens files for O_DIRECT and then can't write so."""
    pwrite = os.pwrite

    def refuse(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)


def _write_short(monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(
        os,
        "pwrite",
        lambda fd, data, offset: pwrite(fd, data[: max(len(data) // 2 // PAGE * PAGE, 1)], offset),
    )


@pytest.mark.parametrize(
    "disk",
    [lambda patch: None, _refuse_direct, _write_short],
    ids=["direct", "refused", "short writes"],
)
@pytest.mark.parametrize("start", [0, 1, PAGE - 1, PAGE, 3 * PAGE + 64])
@pytest.mark.parametrize("sizes", [[5], [PAGE], [3 * PAGE + 7, 1, PAGE - 3], [100] * 300], ids=len)
def test_what_is_written_is_there_and_nothing_else_is(start, sizes, disk, tmp_path, monkeypatch):
    monkeypatch.setattr(direct, "BUFFER_BYTES", 2 * PAGE)
    disk(monkeypatch)
    path = tmp_path / "file"
    expected = np.full(start + sum(sizes) + 64 * len(sizes) + 2 * PAGE, 255, np.uint8)
    path.write_bytes(expected.tobytes())
    random, place = np.random.RandomState(0), start
    with DirectFile(path) as file:
        for number, size in enumerate(sizes):
            if number:  # a gap, as alignment leaves one: zeros
                expected[place : place + 13] = 0
                place += 13
            data = random.randint(0, 256, size).astype(np.uint8)
            file.write(data.data, place)
            expected[place : place + size] = data
            place += size
    assert path.read_bytes() == expected.tobytes()


def test_what_fails_behind_the_scenes_is_raised(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output error"), DirectFile(tmp_path / "f") as file:
        file.write(b"lost", 0)
