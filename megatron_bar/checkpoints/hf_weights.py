"""Weights of Hugging Face folders: safetensors, in one file or in shards with an index.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and
place of each tensor) and then the tensors' bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_bar.checkpoints.manifest import Manifest
from megatron_bar.checkpoints.mapped import MappedFiles
from megatron_bar.checkpoints.plan import Item, Part, Placed, parts_of
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, refuse_lfs_pointer, write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9  # what transformers 4 chooses

_DTYPE_NAMES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
                "BF16": torch.bfloat16}
_NAMES_OF_DTYPES = {dtype: name for name, dtype in _DTYPE_NAMES.items()}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the format's limit
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes in a size such as 5GB or 500MiB. Raises BarError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]I?B)", text.upper())
    if match is None:
        raise BarError(f"{text!r} is not a size such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])


class HfReader:
    """Tensors of a Hugging Face folder by name, and checked where the folder has a manifest.

    Raises BarError for a missing, truncated or inconsistent file, naming file and tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.of(self.folder)
        self._files = MappedFiles(self.folder)
        self._headers: dict[str, tuple[dict[str, Any], int]] = {}
        index = self.folder / INDEX
        if index.is_file():
            self._file_of = _weight_map(index)
        elif (self.folder / SINGLE).is_file():
            self._file_of = dict.fromkeys(self._header(SINGLE)[0], SINGLE)
        else:
            raise BarError(f"{folder} holds neither {SINGLE} nor {INDEX}")

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def where(self, name: str) -> str:
        """File and tensor, for errors."""
        return f"{self.folder / self._file_of[name]}: tensor {name}"

    def _header(self, file_name: str) -> tuple[dict[str, Any], int]:
        """The header's entries by tensor, and where the tensors' bytes begin."""
        if file_name not in self._headers:
            self._headers[file_name] = _read_header(self.folder / file_name)
        return self._headers[file_name]

    def _entry(self, name: str) -> tuple[str, dict[str, Any], int]:
        if name not in self._file_of:
            raise BarError(f"{self.folder}: tensor {name} is missing")
        file_name = self._file_of[name]
        entries, start = self._header(file_name)
        if name not in entries:
            raise BarError(f"{self.folder / file_name}: tensor {name} is missing, but {INDEX} "
                           "says it is here")
        return file_name, entries[name], start

    def check(self, name: str, shape: Sequence[int]) -> torch.dtype:
        """The tensor's dtype. Raises BarError unless it is there and has `shape`."""
        _, entry, _ = self._entry(name)
        if tuple(entry["shape"]) != tuple(shape):
            raise BarError(f"{self.where(name)} has shape {tuple(entry['shape'])}, config.json "
                           f"says {tuple(shape)}")
        if entry["dtype"] not in _DTYPE_NAMES:
            raise BarError(f"{self.where(name)} has dtype {entry['dtype']}, not one of "
                           f"{', '.join(_DTYPE_NAMES)}")
        return _DTYPE_NAMES[entry["dtype"]]

    def read(self, name: str) -> torch.Tensor:
        """A view of the file, not to be written to."""
        file_name, entry, start = self._entry(name)
        dtype = self.check(name, entry["shape"])
        try:
            tensor = self._files.tensor(
                file_name, start + entry["data_offsets"][0], dtype, tuple(entry["shape"])
            )
        except BarError as error:
            raise BarError(f"{error} (at tensor {name})") from None
        if self.manifest is not None:
            self.manifest.check(name, tensor, self.folder / file_name)
        return tensor


def missing_weights(folder: Path) -> str | None:
    """The first file of weights that `folder` should have and hasn't, or None."""
    index = Path(folder) / INDEX
    wanted = sorted(set(_weight_map(index).values())) if index.is_file() else [SINGLE]
    return next((name for name in wanted if not (Path(folder) / name).is_file()), None)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        file_of = dict(read_json(index)["weight_map"])
    except (KeyError, TypeError, ValueError):
        raise BarError(f"{index} has no weight_map") from None
    for tensor, name in file_of.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise BarError(f"{index} puts tensor {tensor} into {name!r}, which is not the name of "
                           "a file in this folder")
    return file_of


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    refuse_lfs_pointer(path)
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size):
                raise BarError(f"{path} is not a whole safetensors file: its header is cut short")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start, end = _LENGTH_BYTES + length, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            if first != end:
                raise ValueError("tensors overlap or leave holes")
            itemsize = getattr(_DTYPE_NAMES.get(entry["dtype"]), "itemsize", None)
            if itemsize and last - first != torch.Size(entry["shape"]).numel() * itemsize:
                raise BarError(f"{path}: tensor {name} has {last - first} bytes, which its dtype "
                               "and shape contradict")
            end = last
    except FileNotFoundError:
        raise BarError(f"{path} is missing, but {INDEX} names it") from None
    except OSError as error:
        raise BarError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BarError(f"{path} is not a whole safetensors file: its header is damaged") from None
    if start + end != size:
        raise BarError(f"{path} is not a whole safetensors file: it has {size} bytes, its header "
                       f"says {start + end}")
    return header, start


class SafetensorsFormat:
    """Items laid out as model.safetensors, or as shards of about `shard_bytes` with an index."""

    def __init__(self, items: Sequence[Item], shard_bytes: int = SHARD_BYTES) -> None:
        self.items = items
        self.parts: list[Part] = []
        self._weight_map: dict[str, str] = {}
        shards = list(_shards(items, shard_bytes))
        for number, shard in enumerate(shards, 1):
            file = (SINGLE if len(shards) == 1
                    else f"model-{number:05}-of-{len(shards):05}.safetensors")
            self.parts += parts_of(file, _placed(shard))
            self._weight_map |= {name: file for item in shard for name in item.names}

    def prepare(self) -> None:
        pass

    def finish(self, folder: Path) -> None:
        if len(set(self._weight_map.values())) > 1:
            total = sum(item.nbytes for item in self.items)
            write_json(folder / INDEX,
                       {"metadata": {"total_size": total}, "weight_map": self._weight_map})


def _shards(items: Sequence[Item], shard_bytes: int) -> Iterator[list[Item]]:
    shard: list[Item] = []
    size = 0
    for item in items:
        if shard and size + item.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(item)
        size += item.nbytes
    yield shard


def _placed(items: Sequence[Item]) -> Iterator[Placed]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: list[list[int]] = []
    end = 0
    for item in items:
        starts.append([])
        for name, shape, size in zip(item.names, item.shapes, item.sizes):
            header[name] = {"dtype": _NAMES_OF_DTYPES[item.dtype], "shape": list(shape),
                            "data_offsets": [end, end + size]}
            starts[-1].append(end)
            end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    frame = len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded
    for number, (item, offsets) in enumerate(zip(items, starts)):
        places = tuple(len(frame) + offset for offset in offsets)
        yield Placed(item, places, ((0, frame),) if number == 0 else ())
