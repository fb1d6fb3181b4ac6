"""`manifest.json`: what every tensor of a folder is, to the bit.

Converters write it, into checkpoints and Hugging Face folders alike; training does not. Where a
folder has one, each tensor that a converter reads is checked against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_bar.checkpoints.mapped import digest
from megatron_bar.checkpoints.plan import Item
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import file_digest, read_json, write_json

FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """dtype, shape and xxh3-128 of each tensor's bytes by its name; xxh3-128 of each small file."""

    tensors: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> Manifest | None:
        """The manifest of `folder`; None where it has none. Raises BarError if it is damaged."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        content = read_json(path)
        try:
            return cls(content["tensors"], content["files"])
        except (KeyError, TypeError):
            raise BarError(f"{path} is not a manifest of megatron-bar; remove it") from None

    def xxh3(self, name: str) -> str | None:
        entry = self.tensors.get(name)
        return entry["xxh3"] if entry else None

    def check(self, name: str, tensor: torch.Tensor, where: Path | str) -> None:
        """Raise BarError unless `tensor` has the bytes that the manifest says."""
        if self.xxh3(name) != digest(tensor):
            raise BarError(
                f"{where}: tensor {name} is not what {FILE_NAME} says; the file is damaged, or "
                f"was changed without removing {FILE_NAME}"
            )


def write_manifest(
    folder: Path, items: Iterable[Item], digests: Mapping[str, str], tensor_files: set[str]
) -> None:
    """Write the manifest of a folder that is complete but for it."""
    tensors = {
        name: {
            "dtype": str(item.dtype).removeprefix("torch."),
            "shape": list(shape),
            "xxh3": digests[name],
        }
        for item in items
        for name, shape in zip(item.names, item.shapes)
    }
    small = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in tensor_files
    )
    files = {str(path.relative_to(folder)): file_digest(path) for path in small}
    write_json(folder / FILE_NAME, {"tensors": tensors, "files": files})


def update_manifest(folder: Path, file: str) -> None:
    """Say anew what one of the small files of `folder` is, if there is a manifest that says it."""
    path = Path(folder) / FILE_NAME
    if path.is_file():
        content = read_json(path)
        content["files"][file] = file_digest(Path(folder) / file)
        write_json(path, content)
