"""The files that the `path` of a source names: one, those of a folder or those a pattern matches.

Nothing here opens a file, so that what only compares paths needn't load what reads them.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from megatron_bar.runtime.errors import BarError

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_GZIP = ".gz"
# In a folder these are data that we would miss; what ends otherwise is taken for a description.
_DATA_OF_OTHERS = frozenset(
    {
        ".csv",
        ".tsv",
        ".xlsx",
        ".arrow",
        ".feather",
        ".avro",
        ".orc",
        ".bin",
        ".npz",
        ".pkl",
        ".gz",
        ".zst",
        ".zstd",
        ".bz2",
        ".xz",
        ".zip",
        ".tar",
        ".tgz",
    }
)


def files_of(path: str) -> list[Path]:
    """The files that a `path` names, in the order of their names; none where it matches nothing.

    `~` and `$HOME` are filled in. A folder stands for all data files in it and below.

    Raises BarError for a folder with data of a kind that isn't read.
    """
    path = os.path.expandvars(os.path.expanduser(path))
    if os.path.isfile(path):
        return [Path(path)]
    if os.path.isdir(path):
        return _in_folder(Path(path))
    return sorted(Path(found) for found in glob.glob(path, recursive=True) if os.path.isfile(found))


def path_name(path: str) -> str:
    """The name of a source after its path: the file or folder without endings.

    A pattern is called by the part of its last name that is written out, else by its folder.
    """
    parts = Path(path).parts
    for part in reversed(parts):
        plain = _without_endings(part)
        for mark in "*?[]":
            plain = plain.replace(mark, "")
        if plain := plain.strip("-_. "):
            return plain
    return path


def _in_folder(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if ending(path) in (*JSON_ENDINGS, ".parquet", ".txt"):
            found.append(path)
        elif path.suffix.lower() in _DATA_OF_OTHERS:
            raise BarError(
                f"{path}: {path.suffix!r} isn't supported; name the files that are "
                f"meant by a pattern, such as {folder}/*.jsonl"
            )
    return found


def ending(path: Path) -> str:
    """The kind of a file: its last ending in small letters, the one before it for text in gzip."""
    last = path.suffix.lower()
    if last != _GZIP:
        return last
    inner = path.with_suffix("").suffix.lower()
    return inner if inner in (*JSON_ENDINGS, ".txt") else last


def _without_endings(name: str) -> str:
    path = Path(name)
    while path.suffix.lower() in (*JSON_ENDINGS, ".parquet", ".txt", _GZIP):
        path = path.with_suffix("")
    return path.name
