"""Two who want the same folder: one line tells who has it; without locks one line says so."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading

import pytest

from megatron_bar.runtime import locks
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.locks import locked


def test_the_second_is_told_who_holds_it(tmp_path):
    with (
        locked(tmp_path / "lock", "another run is at work"),
        pytest.raises(BarError) as raised,
        locked(tmp_path / "lock", "another run is at work"),
    ):
        pass
    said = str(raised.value)
    assert said.startswith("another run is at work (") and "\n" not in said
    assert f"on {socket.gethostname()}, process {os.getpid()})" in said
    with locked(tmp_path / "lock", "another run is at work"):
        pass


def test_one_that_is_patient_gets_it_when_it_is_free(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)
    free = threading.Event()

    def hold() -> None:
        with locked(tmp_path / "lock", "held"):
            held.set()
            free.wait()

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    threading.Timer(0.1, free.set).start()
    with locked(tmp_path / "lock", "held", patience=60):
        assert free.is_set()
    holder.join()
    assert capsys.readouterr().out.count("this one waits for it") == 1


def test_a_file_system_without_locks_is_told_of(tmp_path, capsys, monkeypatch):
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "held"), locked(tmp_path / "lock", "held"):
        pass
    (line, _) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{tmp_path / 'lock'}: this file system has no locks (No locks available); see "
        f"to it that nobody else writes into {tmp_path}"
    )


def test_a_file_that_cant_be_made_is_one_line(tmp_path):
    path = tmp_path / "no" / "lock"
    with pytest.raises(BarError, match=f"{path} can't be written: "), locked(path, "held"):
        pass
