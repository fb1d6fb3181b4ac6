"""`branch`: the anchor's and the pretrained model's FFN, side by side."""

from __future__ import annotations

from typing import Any

from megatron_bar.checkpoints.branch import branch
from megatron_bar.stages.context import Context
from megatron_bar.training.groups import anchor_digest


def run(context: Context) -> dict[str, Any]:
    target = context.folder / "checkpoint"
    pretrained = "pretrained" in context.stage.inputs
    branch(
        context.checkpoint("anchor"), target,
        pretrained=context.checkpoint("pretrained") if pretrained else None,
        expert_name=context.stage.domain, seed=context.stage.settings["seed"], overwrite=True,
    )
    return {"anchor_digest": anchor_digest(target)}
