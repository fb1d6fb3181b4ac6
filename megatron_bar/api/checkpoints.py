"""Checkpoints: import, branch, merge and export, each from folder to folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.checkpoints import branch as branching
from megatron_bar.checkpoints import convert
from megatron_bar.checkpoints import merge as merging
from megatron_bar.checkpoints.average import Deviation
from megatron_bar.checkpoints.hf_weights import parse_size
from megatron_bar.checkpoints.hub import local_folder
from megatron_bar.checkpoints.merging import Rule
from megatron_bar.data.chat_format import find_chat_format
from megatron_bar.models.config import FILE_NAME, ModelConfig
from megatron_bar.recipe.names import EXPORTED
from megatron_bar.runtime.console import say
from megatron_bar.runtime.disk import check_output_folder
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.export_hf import MODEL_FOLDER

StrPath = str | os.PathLike[str]
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, which stands wherever a path is asked for."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of its experts, the anchor first; empty for a dense model."""
        return ModelConfig.load(self.folder).all_expert_names

    def __str__(self) -> str:
        return f"{self.folder} ({', '.join(self.experts) or 'dense'})"


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A merged model, and how far the models lay from the mean of their shared parameters."""

    by_group: list[Deviation]


def import_hf(
    model: StrPath,
    out: StrPath,
    *,
    dtype: str | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Turn a Hugging Face model into a checkpoint at `out`.

    `model` is a folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub, which is downloaded.
    `dtype` casts the weights (float32, bfloat16, float16); by default they keep their bits.

    Raises BarError for a model that isn't there or can't be converted, and where `out` stands
    already, unless `overwrite`.
    """
    check_output_folder(Path(out))
    convert.import_hf(
        local_folder(os.fspath(model)), Path(out), _dtype(dtype), processes, overwrite
    )
    return Checkpoint(Path(out))


def branch(
    anchor: StrPath,
    out: StrPath,
    *,
    name: str = "domain",
    pretrained: StrPath | None = None,
    seed: int = 0,
    processes: int | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Write a branch of the dense checkpoint `anchor` at `out`.

    Its expert 1, called `name`, starts from the FFN of the dense checkpoint `pretrained`, by
    default the anchor's. `seed` is that of the router's rows; all branches of a merge share it.

    Raises BarError unless both are dense checkpoints of one shape, and where `out` stands already,
    unless `overwrite`.
    """
    branching.branch(
        checkpoint_folder(anchor),
        Path(out),
        None if pretrained is None else checkpoint_folder(pretrained),
        name,
        seed,
        processes,
        overwrite,
    )
    return Checkpoint(Path(out))


def merge(
    models: Sequence[StrPath],
    out: StrPath,
    *,
    anchor: StrPath | None = None,
    average: str = "published",
    weights: Sequence[str] = (),
    anchor_ffn: str = "same",
    experts: Sequence[str] | None = None,
    rule: Rule | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> MergedCheckpoint:
    """Write one model of several branches at `out`: the anchor, then an expert of each.

    `models` are branches, or a merged model and branches to add to it; `anchor` is the dense
    checkpoint that they started from. `rule`, of `checkpoints.merging`, makes the shared parameters
    in place of a mean. The other settings are those of `megatron-bar merge`.

    Raises BarError unless all are of one shape with the same anchor, and where `out` stands
    already, unless `overwrite`.
    """
    merged = merging.merge(
        [checkpoint_folder(model) for model in models],
        Path(out),
        None if anchor is None else checkpoint_folder(anchor),
        average,
        weights,
        anchor_ffn,
        experts,
        rule,
        processes,
        overwrite,
    )
    return MergedCheckpoint(Path(out), merged.by_group)


def export_hf(
    checkpoint: StrPath,
    out: StrPath,
    *,
    chat_template: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    active: int | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a checkpoint into a Hugging Face folder at `out`, which transformers and vLLM load.

    `chat_template` is olmo, tulu or a .jinja file; by default what it was trained with, or its
    tokenizer's own. `active` experts run for each token, by default as many as in training.

    Raises BarError for a model that no Hugging Face class computes, and where `out` stands already,
    unless `overwrite`.
    """
    source = checkpoint_folder(checkpoint)
    convert.export_hf(
        source,
        Path(out),
        _dtype(dtype),
        parse_size(max_shard_size),
        processes,
        overwrite,
        chat=find_chat_format(source, chat_template),
        active=active,
    )
    return Path(out)


def checkpoint_folder(path: StrPath) -> Path:
    """The checkpoint at `path`: the folder itself, or the checkpoint in a stage's folder."""
    folder = Path(path)
    within = folder / "checkpoint"
    return within if not (folder / FILE_NAME).is_file() and within.is_dir() else folder


def is_hf(folder: Path) -> bool:
    """Whether a folder is Hugging Face's, not a checkpoint of ours."""
    return (folder / "config.json").is_file()


def exported_by(run: Path) -> Path | None:
    """The Hugging Face folder that a run has exported; None for any other folder."""
    exported = run / EXPORTED / MODEL_FOLDER
    return exported if exported.is_dir() else None


def model_folder(name: StrPath) -> Path:
    """The folder of the checkpoint or Hugging Face model of this name, or what a run exported.

    A name of the hub is downloaded. Raises BarError if there is none.
    """
    folder = exported_by(Path(name)) or checkpoint_folder(name)
    return folder if folder.is_dir() else local_folder(os.fspath(name))


@contextlib.contextmanager
def as_checkpoint(name: StrPath, beside: Path | None = None) -> Iterator[Path]:
    """The checkpoint of this name, or an import of a Hugging Face model, removed in the end.

    The import lies in the folder `beside`, by default in that for temporary files.
    """
    source = model_folder(name)
    if not is_hf(source):
        yield source
        return
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".megatron-bar-", dir=beside) as temporary:
        checkpoint = Path(temporary) / "checkpoint"
        convert.import_hf(source, checkpoint)
        say(f"{os.fspath(name)} is imported for this; megatron-bar import keeps such a checkpoint")
        yield checkpoint


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in _TYPES:
        raise BarError(f"dtype {name!r} is unknown; there are {', '.join(_TYPES)}")
    return None if name is None else _TYPES[name]
