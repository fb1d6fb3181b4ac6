"""A stage's checkpoint: whole under its name, and sound."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from megatron_bar.checkpoints.model_io import save_model
from megatron_bar.checkpoints.resume_point import write_start
from megatron_bar.checkpoints.token_counts import read_token_counts, write_token_counts
from megatron_bar.checkpoints.tokenizer_files import TOKENIZER_FOLDER
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.distributed import all_reduce_any, is_main, written_together
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.disk_space import require_disk_space, sizes_of

_STANDS = "the states that the stage saved before stand"


def check_finite(model: torch.nn.Module, when: str) -> None:
    """Raise BarError on every rank if a trained weight is no number on one; nothing is saved."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if all_reduce_any(not all(torch.isfinite(p.data).all() for p in trained)):
        raise BarError(
            f"{when} there are weights that are not a number; lower lr and go on from "
            "the state before"
        )


def describe_model(folder: Path, config: ModelConfig, tokenizer_folder: Path | None) -> None:
    """Write into `folder` what says which model its tensors are: model.json and the tokenizer."""
    config.save(folder)
    if tokenizer_folder is not None and tokenizer_folder.is_dir():
        shutil.copytree(tokenizer_folder, folder / TOKENIZER_FOLDER)


def describe_resume_point(
    folder: Path, config: ModelConfig, tokenizer_folder: Path | None, start: Path | None
) -> None:
    """Write what `describe_model` does, and where the tensors are that don't train."""
    describe_model(folder, config, tokenizer_folder)
    write_start(folder, start)


def write_checkpoint(
    model: torch.nn.Module,
    config: ModelConfig,
    target: Path,
    tokenizer_folder: Path | None,
    start: Path | None = None,
) -> None:
    """Write a whole checkpoint, with the tokenizer in `tokenizer_folder`; every rank takes part.

    With `start`, the checkpoint that the model was loaded from, it has the types of that one, and
    its token counts go along.

    Raises BarError where the disk hasn't room for it.
    """
    needed = sizes_of(model, start).checkpoint
    with require_disk_space(target, needed, lambda: _STANDS), written_together(target) as folder:
        save_model(model, folder, start)
        if is_main():
            describe_model(folder, config, tokenizer_folder)
            if start is not None and (counts_V := read_token_counts(start)) is not None:
                write_token_counts(folder, counts_V)
