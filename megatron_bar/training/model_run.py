"""One model in one stage of training: which it is, where it starts from, where it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.checkpoints.tokenizer_files import TOKENIZER_FOLDER
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.checkpoints import (
    check_finite,
    describe_resume_point,
    write_checkpoint,
)


@dataclass(frozen=True)
class ModelRun:
    """The model that a stage trains, and its folder, whatever it is trained on."""

    config: ModelConfig
    start: Path | None  # a checkpoint; None for random weights
    folder: Path  # gets checkpoint/, metrics and, while it runs, states to go on from
    layout: Layout
    seed: int
    label: str  # how messages call it
    tokenizer: Path | None = None  # the folder whose tokenizer goes along, by default the start's

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder whose tokenizer goes along; None where there is none."""
        if self.tokenizer is None and self.start is not None:
            return self.start / TOKENIZER_FOLDER
        return self.tokenizer

    def write_checkpoint(
        self, model: torch.nn.Module, step: int, folder: Path | None = None
    ) -> None:
        """Write `model` as it is after `step`, by default as the stage's checkpoint.

        Every rank takes part. Raises BarError for weights that are no numbers, and where the disk
        hasn't room.
        """
        self.check_finite(model, step)
        write_checkpoint(
            model,
            self.config,
            folder or self.folder / "checkpoint",
            self.tokenizer_folder,
            self.start,
        )

    def check_finite(self, model: torch.nn.Module, step: int) -> None:
        """Raise BarError on every rank if a trained weight is no number on one after `step`."""
        check_finite(model, f"{self.label}: after step {step}")

    def describe_resume_point(self, folder: Path) -> None:
        """Write into `folder`, a state to go on from, which model it is a state of."""
        describe_resume_point(folder, self.config, self.tokenizer_folder, self.start)
