"""A folder in the making: locked, with a record of what is done, renamed when it is whole.

Beside the target TARGET stands `.TARGET.partial/`:

    lock          held (flock) by the converter at work; the system frees it when that one dies
    plan.json     what is being written, from which inputs; another plan starts anew
    parts.jsonl   one line for each part that the disk has
    whole/        becomes TARGET
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_bar.checkpoints.plan import Part
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import publish, read_json, staging_path, write_json
from megatron_bar.runtime.locks import hold


class Staging:
    """The folder under its passing name, and which of its parts are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole = folder / "whole"
        self._plan = folder / "plan.json"
        self._parts = folder / "parts.jsonl"

    def begin(self, plan: str) -> dict[int, dict[str, Any]]:
        """The records of the parts that an earlier attempt at the same `plan` left, by number."""
        with contextlib.suppress(BarError):
            if read_json(self._plan) == {"plan": plan} and self.whole.is_dir():
                return self._records()
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.whole.mkdir()
        self._parts.touch()
        write_json(self._plan, {"plan": plan})
        return {}

    def _records(self) -> dict[int, dict[str, Any]]:
        records = {}
        for line in self._parts.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line may be half of one
                entry = json.loads(line)
                records[entry["number"]] = entry["record"]
        return records

    def holds(self, part: Part) -> bool:
        """Can `part`, which is recorded, be in its file?

        A record is written after fsync of the part, so neither a killed process nor a power
        failure leaves a record without its bytes, and a look at the file's size is enough to find
        one that was removed or cut by hand. Reading it all again would cost as much as a new copy;
        rot of the disk is what the manifest's digests are for.
        """
        path = self.whole / part.file
        return path.is_file() and path.stat().st_size >= part.end

    def record(self, number: int, record: dict[str, Any]) -> None:
        """Note that the disk has part `number`."""
        with open(self._parts, "a") as file:
            # A line break first: what a killed process left of a line spoils this one otherwise.
            file.write("\n" + json.dumps({"number": number, "record": record}))
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def staged(target: Path, overwrite: bool) -> Iterator[Staging]:
    """Make the folder `target`, alone, and give it its name when the block ends without an error.

    After an error nothing is left; after an interruption (a kill, ContinueLater) what is done
    stays, to go on from. `target` is as it was in both cases.

    Raises BarError if `target` stands and `overwrite` is false, or another converter is writing it.
    """
    _check_free(target, overwrite)
    folder = staging_path(target)
    with _locked(folder, target):
        _check_free(target, overwrite)  # another one may have finished it in between
        try:
            staging = Staging(folder)
            yield staging
            sync_folder(staging.whole)
            publish(staging.whole, target)
            sync_directory(target.parent)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            where = error.filename or target
            raise BarError(f"{where} can't be written: {error.strerror}") from error
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise BarError(f"{target} exists already; remove it or choose another name")


@contextlib.contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    path = folder / "lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # the one before us has just removed the folder
        except OSError as error:
            raise BarError(f"{target} can't be written: {error.strerror}") from None
        try:
            hold(
                descriptor,
                path,
                f"{target} is being written by another converter; wait for it "
                "or choose another name",
            )
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Is this still the lock, and not that of a folder that has been removed since?"""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make the disk have the small files of `folder`; parts have been seen to already."""
    for path in folder.rglob("*"):
        sync_directory(path) if path.is_dir() else _sync(path, os.O_RDONLY)
    sync_directory(folder)


def sync_directory(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
