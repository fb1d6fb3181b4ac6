"""`export`: the routed model as a Hugging Face FlexOlmo folder."""

from __future__ import annotations

from typing import Any

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.runtime.files import folder_digest
from megatron_bar.stages.context import Context

MODEL_FOLDER = "model"


def run(context: Context) -> dict[str, Any]:
    target = context.folder / MODEL_FOLDER
    model = export_hf(context.checkpoint("checkpoint"), target, overwrite=True)
    return {
        "summary": str(target), "experts": model.all_expert_names,
        "active": model.experts_per_token, "digest": folder_digest(target),
    }
