"""`import`: a Hugging Face folder becomes a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    settings = context.stage.settings
    if "hf" in settings:
        source = Path(settings["hf"])
    else:  # a base that this run trained; from here on it is a folder like any other
        source = context.input_folder("base") / settings["folder"]
    model = import_hf(source, context.folder / "checkpoint", overwrite=True)
    return {"source": str(source), "layers": model.num_layers, "experts": model.num_experts}
