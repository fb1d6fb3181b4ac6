"""What can be known to be wrong before anything is run or written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from megatron_bar.checkpoints import hf
from megatron_bar.data.batches import check_length, check_shares
from megatron_bar.data.mixture import check_mixture
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.graph import Stage
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.recipe.schema import Recipe, Rlvr
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.rlvr.verifiers import verifier_for
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import parts_of, routed_model, training_of
from megatron_bar.training.groups import group_sizes, matching
from megatron_bar.training.overrides import check_overrides

TRAINING_KINDS = ("pretrain", "midtrain", "sft", "rlvr", "route")


def check_recipe(recipe: Recipe, dense: ModelConfig | None = None) -> None:
    """Raise BarError if a stage can't do what is asked of it with the models there are.

    They start from `dense`, by default the model that the recipe names.

    That is: its layout can't hold its model or share its batch, its training names groups that the
    model or fields that Megatron-Core hasn't, its sources can't be mixed, its tasks are scored by a
    verifier that isn't known, or it exports a model for which Hugging Face has no class.
    """
    tasks = {name: domain.tasks for name, domain in recipe.domains.items()}
    for name, entries in {**tasks, "general": recipe.evaluate.general}.items():
        for source in entries:
            try:
                verifier_for(source)
            except BarError as error:
                raise BarError(f"tasks of {name}: {error}") from None
    models = stage_models(recipe, dense or dense_model(recipe))
    exported = models.get("hf")
    if exported is not None and exported.olmo3 is not None and exported.num_experts is not None:
        raise BarError("the anchor is OLMo-3, and Hugging Face has no class for OLMo-3 with "
                       "experts; set export=false to stop at the routed checkpoint")
    for stage in stage_graph(recipe):
        if stage.kind == "evaluate":
            _check_evaluation(stage, models[stage.name])
        if stage.kind not in TRAINING_KINDS:
            continue
        model, training = models[stage.name], training_of(stage)
        try:
            model.check(stage.layout)
            for part in parts_of(stage):
                check_mixture(training_of(part).data)
            check_mixture(training.validation)
            check_shares(training.batch_size, stage.layout.data, training.micro_batch_size)
            check_length(training.sequence_length, stage.layout.context)
            if isinstance(training, Rlvr):
                check_settings(training, stage.layout)
                for source in training.data:
                    verifier_for(source)
        except BarError as error:
            raise BarError(f"{stage.name}: {error}") from None
        groups = list(group_sizes(model))
        matching(groups, training.trainable, f"{stage.name}: trainable")
        matching(groups, list(training.lr_scale), f"{stage.name}: lr_scale")
        check_overrides(training, stage.name)


def check_installed(recipe: Recipe) -> None:
    """Raise BarError if a stage needs a package that this Python, which will run it, hasn't."""
    for stage in stage_graph(recipe):
        if stage.kind == "rlvr" and importlib.util.find_spec("nemo_aligner") is None:
            raise BarError(f"{stage.name}: NeMo-Aligner is missing; install it with: pip install "
                           "'megatron-bar[rlvr]'")
        if "training" not in stage.settings or training_of(stage).wandb is None:
            continue
        if importlib.util.find_spec("wandb") is None:
            raise BarError(f"{stage.name}: wandb is asked for and not installed; pip install "
                           "wandb, or leave it out")


def stage_models(recipe: Recipe, dense: ModelConfig) -> dict[str, ModelConfig]:
    """By stage, the model that it makes or, if it makes none, reads."""
    models: dict[str, ModelConfig] = {}
    for stage in stage_graph(recipe):
        if stage.kind in ("pretrain", "import"):
            models[stage.name] = dense
        elif stage.kind in ("branch", "adopt", "merge", "stack"):
            of_branch = stage.kind in ("branch", "adopt")
            models[stage.name] = dense.with_experts(2 if of_branch else len(recipe.domains) + 1)
        else:
            models[stage.name] = models[next(iter(stage.inputs.values()))]
        if stage.kind == "route":
            models[stage.name] = routed_model(stage, models[stage.name])
    return models


def _check_evaluation(stage: Stage, model: ModelConfig) -> None:
    """Experts are spread as far as they can be, so the other sizes decide."""
    try:
        model.check(stage.layout.fitted(model.num_experts))
    except BarError as error:
        raise BarError(f"{stage.name}: {error}") from None


def dense_model(recipe: Recipe) -> ModelConfig:
    """The model a recipe starts from. Raises BarError if it is unknown or not dense."""
    if recipe.pretrain is not None:
        if recipe.pretrain.model not in PRESETS:
            raise BarError(f"pretrain.model {recipe.pretrain.model!r} is unknown; there are "
                           f"{', '.join(PRESETS)}")
        return PRESETS[recipe.pretrain.model]
    model = hf.model_config_from_hf(Path(recipe.anchor))
    if model.num_experts is not None:
        raise BarError(f"{recipe.anchor} has {model.num_experts} experts; BAR starts from a dense "
                       "model")
    if recipe.pretrained is not None:
        other = hf.model_config_from_hf(Path(recipe.pretrained))
        if other != model:
            raise BarError(f"{recipe.pretrained} and {recipe.anchor} are models of different shape")
    return model
