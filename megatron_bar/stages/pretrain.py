"""`pretrain`: a small dense base from scratch, exported as the folders a user would bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.fields import CHATS, TEXTS
from megatron_bar.recipe.schema import Pretrain
from megatron_bar.stages.stage import Reading
from megatron_bar.stages.training_stage import TrainingStage

if TYPE_CHECKING:
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.stages.context import Context

# What it leaves in its folder: the last model, and the one of the snapshot.
HF_FOLDER, PRETRAINED_HF_FOLDER = "hf", "pretrained_hf"


@dataclass(frozen=True, kw_only=True)
class PretrainStage(TrainingStage):
    """Its `training` is that of `pretrain`, with the groups that train by default."""

    pretrain: Pretrain

    KIND = "pretrain"
    LABEL = "train a base"

    def readings(self) -> Iterator[Reading]:
        length = self.training.sequence_length
        for source in self.pretrain.chat:
            yield Reading(self.name, source, CHATS, length)
        for source in self.training.data:
            yield Reading(self.name, source, TEXTS)

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.stages.work.pretrain import train_base

        return train_base(context)

    @property
    def recipe_section(self) -> str:
        return "pretrain.training"
