"""The one way a converter writes: parts in parallel, each on disk before it is recorded."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_bar.checkpoints.manifest import write_manifest
from megatron_bar.checkpoints.plan import Item, Part, description
from megatron_bar.checkpoints.staging import staged
from megatron_bar.checkpoints.write import write_part
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.disk import lacking
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import json_digest
from megatron_bar.runtime.pool import WorkerKilled, cores, spread

# What a process should have to do; a few of them keep a disk busy.
BYTES_PER_PROCESS = 2**29
MOST_PROCESSES = 16


class Format(Protocol):
    """Tensors laid out in files."""

    @property
    def items(self) -> Sequence[Item]: ...

    @property
    def parts(self) -> Sequence[Part]: ...

    def prepare(self) -> None:
        """Get ready what `finish` needs. Called in a thread while tensors are being written."""

    def finish(self, folder: Path) -> None:
        """Write what tells readers where the tensors are."""


def convert(
    what: str,
    target: Path,
    output: Format,
    inputs: Sequence[Path],
    write_small_files: Callable[[Path], None],
    settings: Any = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write `output`, small files and a manifest into the folder `target`; returns makers' facts.

    An attempt that was killed is gone on with if the plan, the `inputs` (folders; by name, size and
    time of their files) and the `settings` are the same. The bytes written don't depend on the
    number of `processes`, by default as many as `sensible_processes` says.

    Raises BarError for anything that can't be read or written, is damaged or isn't finite; then
    nothing is left, and `target` is as it was.
    """
    target = Path(target)
    plan = json_digest([what, settings, _fingerprint(inputs), description(output.parts)])
    size = sum(item.nbytes for item in output.items)
    with staged(target, overwrite) as staging:
        records = {
            number: record
            for number, record in staging.begin(plan).items()
            if staging.holds(output.parts[number])
        }
        missing = {n: part for n, part in enumerate(output.parts) if n not in records}
        needed = sum(placed.item.nbytes for part in missing.values() for placed in part.placed)
        if refusal := lacking(target, needed):
            raise BarError(refusal)
        with progress(what, len(output.items)) as advance:
            for number in records:
                advance(len(output.parts[number].placed))
            preparation = threading.Thread(target=output.prepare)
            for number, record in _written(
                staging.whole, missing, processes or sensible_processes(size)
            ):
                if preparation.ident is None:  # not before children were forked
                    preparation.start()
                staging.record(number, record)
                records[number] = record
                advance(len(output.parts[number].placed))
        in_order = [records[number] for number in range(len(output.parts))]
        digests = {name: d for record in in_order for name, d in record["digests"].items()}
        tensor_files = {part.file for part in output.parts}
        _remove_small_files(staging.whole, tensor_files)
        output.finish(staging.whole)
        write_small_files(staging.whole)
        write_manifest(staging.whole, output.items, digests, tensor_files)
    return [fact for record in in_order for fact in record["facts"]]


def sensible_processes(size: int) -> int:
    """The number of processes to use for `size` bytes, where the user doesn't say."""
    return min(cores(), MOST_PROCESSES, 1 + size // BYTES_PER_PROCESS)


def _fingerprint(folders: Sequence[Path]) -> list[Any]:
    return [
        [
            str(folder.resolve()),
            [
                [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ],
        ]
        for folder in map(Path, folders)
    ]


def _remove_small_files(folder: Path, tensor_files: set[str]) -> None:
    """What an attempt left that was killed while it wrote them; they are written anew."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in tensor_files:
            path.unlink()


def _written(
    folder: Path, parts: dict[int, Part], processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write `parts`; yields number and record of each as it is done."""

    def write(number: int) -> tuple[int, dict[str, Any]]:
        return number, write_part(folder, parts[number])

    try:
        yield from spread(write, list(parts), processes)
    except WorkerKilled:
        raise BarError(
            f"a process that wrote {folder} was killed: out of memory, or a file that is read "
            "has been cut short, or its disk fails"
        ) from None
