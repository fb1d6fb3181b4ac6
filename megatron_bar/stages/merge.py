"""`merge`, `average` and `stack`: the anchor's and the domains' models become one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_bar.checkpoints import dense
from megatron_bar.checkpoints.merge import Merged, merge
from megatron_bar.checkpoints.merge_plan import ANCHOR
from megatron_bar.stages.context import Context
from megatron_bar.training.groups import anchor_digest


def run(context: Context) -> dict[str, Any]:
    """Branches: shared parameters averaged, experts and their router rows side by side."""
    shared = _shared(context)
    means = ("published", "branches")
    merged = merge(
        list(_models(context).values()), _target(context), context.checkpoint(ANCHOR),
        average=shared if shared in means else "published",
        weights=() if shared in means else [f"*={shared}:1"], overwrite=True,
    )
    return _facts(context, merged)


def average(context: Context) -> dict[str, Any]:
    """Dense models: every parameter averaged."""
    anchor = context.checkpoint(ANCHOR) if _shared(context) == "published" else None
    return _facts(context, dense.average(
        _models(context), _target(context), anchor, overwrite=True
    ))


def stack(context: Context) -> dict[str, Any]:
    """Dense models: FFNs side by side, the rest averaged or of one."""
    return _facts(context, dense.stack(
        context.checkpoint(ANCHOR), _models(context), _target(context), _shared(context),
        context.stage.settings["seed"], overwrite=True,
    ))


def _models(context: Context) -> dict[str, Path]:
    """The domains' models, by name."""
    return {role: context.checkpoint(role) for role in context.stage.inputs if role != ANCHOR}


def _target(context: Context) -> Path:
    return context.folder / "checkpoint"


def _shared(context: Context) -> str:
    return context.stage.settings.get("shared", "published")


def _facts(context: Context, merged: Merged) -> dict[str, Any]:
    experts = merged.model.all_expert_names
    summary = f"{len(experts)} experts" if experts else "one dense model"
    shared = [d for d in merged.by_tensor if d.group != "router.0"]
    if shared:
        farthest = max(shared, key=lambda d: d.largest)
        what = "shared parameters" if experts else "models"
        summary += (f"; {what} lie at most {farthest.largest:.1%} from their mean "
                    f"({farthest.tensor})")
    anchor = {"anchor_digest": anchor_digest(_target(context))} if experts else {}
    return {
        "summary": summary, "experts": experts, **anchor,
        "deviations": [dataclasses.asdict(d) for d in shared],
    }
