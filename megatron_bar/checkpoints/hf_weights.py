"""Weights of Hugging Face folders: safetensors, in one file or in shards with an index.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and
place of each tensor) and then the tensors' bytes. The library reads it. Writing is our own, since
the library wants all tensors of a file in memory, 5 GB where an export takes 160 MiB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_bar.checkpoints.manifest import Manifest
from megatron_bar.checkpoints.mapped import prefetch
from megatron_bar.checkpoints.plan import Item, Part, PlacedItem, parts_of
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, refuse_lfs_pointer, write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9  # what transformers 4 chooses

_DTYPE_NAMES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES_OF_DTYPES = {dtype: name for name, dtype in _DTYPE_NAMES.items()}
_LENGTH_BYTES = 8
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
        self._opened: dict[str, safe_open] = {}
        index = self.folder / INDEX
        if index.is_file():
            self._file_of = _weight_map(index)
        elif (self.folder / SINGLE).is_file():
            self._file_of = dict.fromkeys(self._file(SINGLE).keys(), SINGLE)
        else:
            raise BarError(f"{folder} holds neither {SINGLE} nor {INDEX}")

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def where(self, name: str) -> str:
        """File and tensor, for errors."""
        return f"{self.folder / self._file_of[name]}: tensor {name}"

    def _file(self, file_name: str) -> safe_open:
        if file_name not in self._opened:
            self._opened[file_name] = _open(self.folder / file_name)
        return self._opened[file_name]

    def _file_with(self, name: str) -> safe_open:
        if name not in self._file_of:
            raise BarError(f"{self.folder}: tensor {name} is missing")
        file_name = self._file_of[name]
        file = self._file(file_name)
        if name not in file.keys():  # noqa: SIM118 (it is no mapping)
            raise BarError(
                f"{self.folder / file_name}: tensor {name} is missing, but {INDEX} says it is here"
            )
        return file

    def check(self, name: str, shape: Sequence[int]) -> torch.dtype:
        """The tensor's dtype. Raises BarError unless it is there and has `shape`."""
        entry = self._file_with(name).get_slice(name)
        if tuple(entry.get_shape()) != tuple(shape):
            raise BarError(
                f"{self.where(name)} has shape {tuple(entry.get_shape())}, config.json "
                f"says {tuple(shape)}"
            )
        if entry.get_dtype() not in _DTYPE_NAMES:
            raise BarError(
                f"{self.where(name)} has dtype {entry.get_dtype()}, not one of "
                f"{', '.join(_DTYPE_NAMES)}"
            )
        return _DTYPE_NAMES[entry.get_dtype()]

    def read(self, name: str) -> torch.Tensor:
        """A view of the file, not to be written to."""
        tensor = self._file_with(name).get_tensor(name)
        try:
            prefetch(tensor, self.folder / self._file_of[name])
        except BarError as error:
            raise BarError(f"{error} (at tensor {name})") from None
        if self.manifest is not None:
            self.manifest.check(name, tensor, self.folder / self._file_of[name])
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
            raise BarError(
                f"{index} puts tensor {tensor} into {name!r}, which is not the name of "
                "a file in this folder"
            )
    return file_of


def _what_is_wrong(error: SafetensorError) -> str:
    said = str(error).rpartition("header: ")[2]
    if "not fully covered" in said:
        return "it is shorter or longer than its header says"
    if said in ("header too small", "header too large", "invalid header length"):
        return "its header is cut short"
    return f"its header is damaged ({said})"


def _open(path: Path) -> safe_open:
    """The file, mapped into memory: its tensors are views."""
    refuse_lfs_pointer(path)
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise BarError(f"{path} is missing, but {INDEX} names it") from None
    except OSError as error:
        raise BarError(f"{path} can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise BarError(f"{path} is not a whole safetensors file: {_what_is_wrong(error)}") from None


class SafetensorsFormat:
    """Items laid out as model.safetensors, or as shards of about `shard_bytes` with an index."""

    def __init__(self, items: Sequence[Item], shard_bytes: int = SHARD_BYTES) -> None:
        # Takes a third of a second, which imports have no use for.
        from huggingface_hub import split_state_dict_into_shards_factory

        self.items = items
        item_of = {item.names[0]: item for item in items}
        split = split_state_dict_into_shards_factory(
            item_of,
            get_storage_size=lambda item: item.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=shard_bytes,
        )
        shards = {
            file: [item_of[name] for name in names]
            for file, names in split.filename_to_tensors.items()
        }
        self.parts: list[Part] = [
            part for file, shard in shards.items() for part in parts_of(file, _placed(shard))
        ]
        self._index = split.is_sharded and {
            "metadata": split.metadata,
            "weight_map": {
                name: file
                for file, shard in shards.items()
                for item in shard
                for name in item.names
            },
        }

    def prepare(self) -> None:
        pass

    def finish(self, folder: Path) -> None:
        if self._index:
            write_json(folder / INDEX, self._index)


def _placed(items: Sequence[Item]) -> Iterator[PlacedItem]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: list[list[int]] = []
    end = 0
    for item in items:
        starts.append([])
        for name, shape, size in zip(item.names, item.shapes, item.sizes):
            header[name] = {
                "dtype": _NAMES_OF_DTYPES[item.dtype],
                "shape": list(shape),
                "data_offsets": [end, end + size],
            }
            starts[-1].append(end)
            end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    frame = len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded
    for number, (item, offsets) in enumerate(zip(items, starts)):
        places = tuple(len(frame) + offset for offset in offsets)
        yield PlacedItem(item, places, ((0, frame),) if number == 0 else ())
