"""The dense models that a recipe starts from: folders, or names of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.companions import load_tokenizer
from megatron_bar.checkpoints.convert import check_import
from megatron_bar.checkpoints.hub import local_folder
from megatron_bar.checkpoints.number_types import compute_type
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS, preset_named
from megatron_bar.recipe.graph import Stage
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import read_done


def dense_model(recipe: Recipe) -> ModelConfig:
    """The model a recipe starts from, whose weights needn't be here.

    Its sizes are told by the folder's config.json, by what the run has imported, by the hub's (in
    its cache or, where that may be asked, downloaded) or else by a published model's name.

    Raises BarError if none of these tells, or the model isn't dense.
    """
    if recipe.pretrain is not None:
        if recipe.pretrain.model not in PRESETS:
            raise BarError(f"pretrain.model {recipe.pretrain.model!r} is unknown; there are "
                           f"{', '.join(PRESETS)}")
        return PRESETS[recipe.pretrain.model]
    assert recipe.anchor is not None
    model = _sizes(recipe, "anchor", recipe.anchor)
    if model.num_experts is not None:
        raise BarError(f"{recipe.anchor} has {model.num_experts} experts; BAR starts from a dense "
                       "model")
    pretrained = recipe.pretrained
    if pretrained is not None and _sizes(recipe, "pretrained", pretrained) != model:
        raise BarError(f"{pretrained} and {recipe.anchor} are models of different shape")
    return model


def dense_type(recipe: Recipe) -> torch.dtype:
    """The type that the model a recipe starts from is stored in, by its config.json.

    Where that can't be had it is bfloat16, as most models are published.
    """
    if recipe.pretrain is not None:
        return compute_type(recipe.pretrain.training.dtype, start=None)
    try:
        return hf.stored_type(local_folder(recipe.anchor, weights=False))
    except BarError:
        return torch.bfloat16


def start_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The anchor's tokenizer, which every stage of a run uses.

    Raises BarError if there is none, or the recipe trains its own and hasn't yet.
    """
    if recipe.anchor is not None:
        imported = _imported(recipe, "anchor", recipe.anchor)
        return load_tokenizer(imported or local_folder(recipe.anchor, weights=False))
    anchor = _checkpoint(recipe, "anchor")
    if not anchor.is_dir():
        raise BarError(
            f"the recipe trains its own tokenizer, and {anchor} isn't there yet; run it first"
        )
    return load_tokenizer(anchor)


def check_starts(stages: Sequence[Stage]) -> None:
    """Raise BarError if what the stages among these import isn't here whole.

    Weights of the hub are downloaded where they may be.
    """
    for stage in stages:
        if stage.kind == "import" and "hf" in stage.settings:
            check_import(local_folder(stage.settings["hf"]))


def _sizes(recipe: Recipe, role: str, name: str) -> ModelConfig:
    if imported := _imported(recipe, role, name):
        return ModelConfig.load(imported)
    try:
        folder = local_folder(name, weights=False)
    except BarError:
        published = preset_named(Path(name.partition("@")[0]).name)
        if published is None:
            raise
        return published
    return hf.model_config_from_hf(folder)


def _imported(recipe: Recipe, role: str, name: str) -> Path | None:
    """The run's import of a model of the hub: of the commit that the run goes on with."""
    checkpoint = _checkpoint(recipe, role)
    done = read_done(checkpoint.parent)
    pinned = done is not None and done.get("commit") is not None and done["source"] == name
    return checkpoint if pinned and not Path(name).is_dir() else None


def _checkpoint(recipe: Recipe, role: str) -> Path:
    return Path(recipe.runs) / recipe.name / role / "checkpoint"
