"""The model that a run made, for who has to decide about it: from what, where, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_bar.analysis.formats import duration, number
from megatron_bar.checkpoints.model_card import parameters, times_the_dense
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.names import ANCHOR, EXPORTED, MERGED, ROUTED
from megatron_bar.runtime.errors import BarError


def made_model(
    run: Path, recipe: Mapping[str, Any], stages: Sequence[dict[str, Any]]
) -> list[tuple[str, str]]:
    """Facts of the model and of its making, each with what it is; [] before there is a model."""
    done = {stage["stage"]: stage for stage in stages}
    exported = done.get(EXPORTED, {}).get("inputs", {}).get("checkpoint", {}).get("stage")
    model = _model(run, exported, ROUTED, MERGED)
    if model is None:
        return []
    facts = [
        ("base", f"{recipe[role]} ({role})") for role in (ANCHOR, "pretrained") if recipe.get(role)
    ]
    words = f"{number(parameters(model))} parameters"
    if model.num_experts is not None:
        size, speed = times_the_dense(model)
        words += (
            f", {size:.1f} times those of the dense model it grew from; each token takes "
            f"{speed:.1f} times the operations (counted, not measured)"
        )
        facts.append(("experts", ", ".join(model.all_expert_names)))
    facts.insert(0, ("size", words))
    if EXPORTED in done:
        facts.append(
            ("lies in", f"{EXPORTED}/model of the run's folder, with a model card (README.md)")
        )
    trained = [stage for stage in stages if "trainable" in stage]
    seconds = sum(stage["seconds"] * stage["layout"]["processes"] for stage in trained)
    facts.append(
        (
            "training",
            f"{duration(seconds)} of devices (each process counts) in {len(trained)} stages",
        )
    )
    if devices := dict.fromkeys(stage["device"] for stage in trained if "device" in stage):
        facts.append(("on", ", ".join(devices)))
    return facts


def _model(run: Path, *stages: str | None) -> ModelConfig | None:
    """The configuration that the first of these stages left, of those that did."""
    for stage in stages:
        try:
            if stage is not None:
                return ModelConfig.load(run / stage / "checkpoint")
        except BarError:
            continue
    return None
