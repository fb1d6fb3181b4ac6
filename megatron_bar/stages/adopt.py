"""`adopt`: a branch that was trained elsewhere, in place of a domain's stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_bar.checkpoints.adopt import adopt
from megatron_bar.stages.context import Context
from megatron_bar.training.groups import anchor_digest


def run(context: Context) -> dict[str, Any]:
    source, target = Path(context.stage.settings["checkpoint"]), context.folder / "checkpoint"
    adopt(source, target, context.checkpoint("anchor"), context.stage.domain)
    return {"summary": f"taken from {source}", "source": str(source),
            "anchor_digest": anchor_digest(target)}
