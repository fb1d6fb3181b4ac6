"""What the `path` of a source names: a file, those of a folder, or those that a pattern matches."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from megatron_bar.data.byte_files import bytes_of
from megatron_bar.data.json_files import json_records
from megatron_bar.data.records import Chained, Listed, Records
from megatron_bar.data.tables import Parquet
from megatron_bar.runtime.errors import BarError

_JSON = (".jsonl", ".ndjson", ".json")
_GZIP = ".gz"
# In a folder these are data that we would miss; what ends otherwise is taken for a description.
_DATA_OF_OTHERS = frozenset({
    ".csv", ".tsv", ".xlsx", ".arrow", ".feather", ".avro", ".orc", ".bin", ".npz", ".pkl",
    ".gz", ".zst", ".zstd", ".bz2", ".xz", ".zip", ".tar", ".tgz",
})
_READABLE = ".jsonl, .ndjson, .json, .parquet or .txt, all but .parquet also with .gz"


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
    return sorted(Path(found) for found in glob.glob(path, recursive=True)
                  if os.path.isfile(found))


def path_name(path: str) -> str:
    """What a source is called after its path: the file or folder without endings.

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


def read_path(path: str, text_column: str, texts: bool) -> Records:
    """The records of all files that a `path` names; a .txt file is one record, its text.

    Raises BarError if there are no such files, one is broken or of a kind that isn't read, and for
    a .txt file where conversations are asked for (not `texts`).
    """
    files = files_of(path)
    if not files:
        kind = "matches no file" if glob.has_magic(path) else "is not a file"
        if os.path.isdir(os.path.expandvars(os.path.expanduser(path))):
            kind = f"holds no file that is read ({_READABLE})"
        raise BarError(f"{path} {kind}; correct the path of the data source")
    parts = [_read_file(file, text_column, texts) for file in files]
    return parts[0] if len(parts) == 1 else Chained(parts)


def _read_file(path: Path, text_column: str, texts: bool) -> Records:
    if not os.access(path, os.R_OK):
        raise BarError(f"{path} may not be read by this user; change its permissions")
    ending = _ending(path)
    if ending in _JSON:
        return json_records(path)
    if ending == ".parquet":
        return Parquet(path)
    if ending != ".txt":
        raise BarError(f"{path}: {path.suffix!r} isn't supported; give {_READABLE}")
    if not texts:
        raise BarError(f"{path} holds text, not conversations; give .jsonl, .json or .parquet")
    text = _read_text(path)
    records = [{text_column: text}] if text.strip() else []
    return Listed(records, lambda index: str(path))


def _in_folder(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if _ending(path) in (*_JSON, ".parquet", ".txt"):
            found.append(path)
        elif path.suffix.lower() in _DATA_OF_OTHERS:
            raise BarError(f"{path}: {path.suffix!r} isn't supported; name the files that are "
                           f"meant by a pattern, such as {folder}/*.jsonl")
    return found


def _ending(path: Path) -> str:
    """The kind of a file: its last ending in small letters, the one before it for text in gzip."""
    ending = path.suffix.lower()
    if ending != _GZIP:
        return ending
    inner = path.with_suffix("").suffix.lower()
    return inner if inner in (*_JSON, ".txt") else ending


def _without_endings(name: str) -> str:
    path = Path(name)
    while path.suffix.lower() in (*_JSON, ".parquet", ".txt", _GZIP):
        path = path.with_suffix("")
    return path.name


def _read_text(path: Path) -> str:
    try:
        text = b"".join(bytes_of(path).blocks()).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{path} can't be read as UTF-8: {error}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
