"""The dense models that a recipe starts from: folders, or names of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.hf_weights import missing_weights
from megatron_bar.checkpoints.hub import local_folder
from megatron_bar.checkpoints.number_types import compute_type
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.launch.stale import run_folder
from megatron_bar.models.config import ModelConfig, check_same_shape
from megatron_bar.models.presets import PRESETS, preset_named
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import read_done


def dense_model(recipe: Recipe) -> ModelConfig:
    """The model a recipe starts from, whose weights needn't be here.

    Its sizes are those of the folder's config.json, of what the run has imported, of the hub's (in
    its cache or, where that may be asked, downloaded) or else of a published model's name.

    Raises BarError if none of these tells, or the model isn't dense.
    """
    if recipe.pretrain is not None:
        if recipe.pretrain.model not in PRESETS:
            raise BarError(
                f"pretrain.model {recipe.pretrain.model!r} is unknown; there are "
                f"{', '.join(PRESETS)}"
            )
        return PRESETS[recipe.pretrain.model]
    assert recipe.anchor is not None
    model = _sizes(recipe, "anchor", recipe.anchor)
    if model.num_experts is not None:
        raise BarError(
            f"{recipe.anchor} has {model.num_experts} experts; BAR starts from a dense model"
        )
    pretrained = recipe.pretrained
    if pretrained is not None:
        other = _sizes(recipe, "pretrained", pretrained)
        check_same_shape(pretrained, other, recipe.anchor, model)
    return model


def dense_type(recipe: Recipe) -> torch.dtype:
    """The type that the model a recipe starts from is stored in, by its config.json.

    Where that can't be had it is bfloat16, as most models are published.
    """
    if recipe.pretrain is not None:
        return compute_type(recipe.pretrain.training.dtype, start=None)
    assert recipe.anchor is not None  # a recipe has one of the two
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


def weights_here(recipe: Recipe) -> bool:
    """Whether the models that the recipe starts from are on this machine.

    Where they aren't, plans and scripts can still be made of what is.
    """
    try:
        folders = [
            local_folder(name, download=False)
            for name in (recipe.anchor, recipe.pretrained)
            if name is not None
        ]
    except BarError:
        return False
    return not any(map(missing_weights, folders))


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
    """The run's import of a model that is of the hub, at the commit that the run goes on with, or
    whose folder is gone."""
    checkpoint = _checkpoint(recipe, role)
    done = read_done(checkpoint.parent)
    imported = done is not None and done.get("source") == name and not Path(name).is_dir()
    return checkpoint if imported else None


def _checkpoint(recipe: Recipe, role: str) -> Path:
    return run_folder(recipe) / role / "checkpoint"
