"""The records of all files that the `path` of a source names."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from megatron_bar.data.byte_files import bytes_of
from megatron_bar.data.json_files import json_records
from megatron_bar.data.paths import JSON_ENDINGS, ending, files_of
from megatron_bar.data.records import Chained, Listed, Records
from megatron_bar.data.tables import Parquet
from megatron_bar.runtime.errors import BarError

_READABLE = ".jsonl, .ndjson, .json, .parquet or .txt, all but .parquet also with .gz"


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
    kind = ending(path)
    if kind in JSON_ENDINGS:
        return json_records(path)
    if kind == ".parquet":
        return Parquet(path)
    if kind != ".txt":
        raise BarError(f"{path}: {path.suffix!r} isn't supported; give {_READABLE}")
    if not texts:
        raise BarError(f"{path} holds text, not conversations; give .jsonl, .json or .parquet")
    text = _read_text(path)
    records = [{text_column: text}] if text.strip() else []
    return Listed(records, lambda index: str(path))


def _read_text(path: Path) -> str:
    try:
        text = b"".join(bytes_of(path).blocks()).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{path} can't be read as UTF-8: {error}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
