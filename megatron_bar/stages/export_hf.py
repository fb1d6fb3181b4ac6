"""`export`: the model that a recipe makes as a Hugging Face folder."""

from __future__ import annotations

from typing import Any

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.checkpoints.model_card import Origin
from megatron_bar.recipe.methods import METHODS
from megatron_bar.runtime.files import folder_digest
from megatron_bar.stages.context import Context

MODEL_FOLDER = "model"


def run(context: Context) -> dict[str, Any]:
    target = context.folder / MODEL_FOLDER
    method = context.stage.settings.get("method", "bar")
    model = export_hf(context.checkpoint("checkpoint"), target, overwrite=True,
                      origin=Origin(method, METHODS[method].MADE))
    return {
        "summary": str(target), "experts": model.all_expert_names,
        "active": model.experts_per_token, "digest": folder_digest(target),
    }
