"""`import`: a Hugging Face folder becomes a checkpoint."""

from __future__ import annotations

from typing import Any

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.hub import commit_of, local_folder
from megatron_bar.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    """Raises BarError for a model of the hub that isn't in its cache: a stage downloads nothing."""
    settings = context.stage.settings
    if "hf" in settings:
        source = local_folder(settings["hf"], download=False)
    else:  # a base that this run trained; from here on it is a folder like any other
        source = context.input_folder("base") / settings["folder"]
    model = import_hf(source, context.folder / "checkpoint", overwrite=True)
    commit = commit_of(source)
    return {
        "source": settings["hf"] if commit else str(source), "commit": commit,
        "layers": model.num_layers, "experts": model.num_experts,
    }
