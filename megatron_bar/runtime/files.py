"""Files and folders that are whole under their final name, and digests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from megatron_bar.runtime.errors import BarError

if TYPE_CHECKING:  # most who use this module never touch a tensor
    import torch

_LFS_POINTER = b"version https://git-lfs"


def staging_path(target: Path) -> Path:
    """The folder to write into before it takes its final name: beside it, on the same disk."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder beside `target` and rename it when the block ends without an error.

    Yields the folder to write into, which starts empty. After an error it is removed and `target`
    is as it was.

    Raises BarError if `target` stands already and `overwrite` is false.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise BarError(f"{target} exists already; remove it or choose another name")
    staging = staging_path(target)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    publish(staging, target)


def publish(staging: Path, target: Path) -> None:
    """Give a finished folder its final name, in place of what stood there."""
    if target.exists():
        remove_folder(target)
    os.replace(staging, target)


def remove_folder(target: Path) -> None:
    """Remove a folder that is whole, which it is no more from the moment it loses its name."""
    doomed = target.with_name(f".{target.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(target, doomed)
    shutil.rmtree(doomed)


def link_tree(source: Path, target: Path) -> None:
    """A second name for a file or for all files of a folder, which takes no room on the disk.

    Files that stand are replaced, never written into, so both names keep what they have. Where the
    target is on another disk it is a copy.
    """
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name when the block ends without an error."""
    staging = staging_path(path)
    try:
        yield staging
        os.replace(staging, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write text under its final name in one step; what UTF-8 can't say becomes a `?`."""
    with _whole_file(path) as staging:
        staging.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, content: Any) -> None:
    """Write JSON under its final name in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Write a JSON value a line under the file's final name in one step."""
    with _whole_file(path) as staging, open(staging, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises BarError if it is missing or not JSON."""
    refuse_lfs_pointer(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BarError(f"{path} is missing") from None
    except OSError as error:
        raise BarError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BarError(f"{path} is not valid JSON: {error}") from None


def refuse_lfs_pointer(path: Path) -> None:
    """Raise BarError if a file is what Git leaves in place of a large one that wasn't fetched."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise BarError(f"{path} is a Git LFS pointer, not the file; get it with: git lfs pull")


def tensor_digest(tensor: torch.Tensor) -> str:
    """xxh3 of a tensor's bytes, its shape and its dtype."""
    import torch

    data = tensor.detach().contiguous().cpu()
    digest = xxhash.xxh3_128(f"{data.dtype}{tuple(data.shape)}".encode())
    whole = data.view(torch.uint8).numpy() if data.dim() else data.numpy().tobytes()
    digest.update(whole)  # type: ignore[arg-type]  # an array has the buffer protocol
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """xxh3 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_digest(content: Any) -> str:
    """xxh3 of a JSON value, whatever the order of its keys."""
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()
