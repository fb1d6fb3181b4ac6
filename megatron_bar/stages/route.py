"""`route`: train the merged model's router, and nothing else."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from megatron_bar.checkpoints.companions import load_tokenizer
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import ROUTER_NAME, slots
from megatron_bar.data.chat_format import pad_id
from megatron_bar.data.packing import PackedDocuments
from megatron_bar.data.sources import source_name
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.graph import routing_data
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context, routed_model
from megatron_bar.stages.data import stage_rows
from megatron_bar.stages.train import train_on
from megatron_bar.training.router_start import start_at_centroids, start_at_random
from megatron_bar.training.setup import Begin


def run(context: Context) -> dict[str, Any]:
    """Train the router's rows on a sample of all domains' SFT data.

    Raises BarError where rows are to start from centroids and an expert has no data of its own.
    """
    settings, start = context.stage.settings, context.checkpoint("start")
    config = routed_model(context.stage, ModelConfig.load(start))
    tokenizer = load_tokenizer(start)
    rows, facts = stage_rows(context, tokenizer)
    facts = train_on(
        context, tokenizer, rows, facts, config, _begin(context, rows, config, pad_id(tokenizer)),
        settings.get("load_balancing", 0.0),
    )
    if is_main():
        facts["router_drift"] = router_drift(start, context.folder / "checkpoint")
    return facts


def _begin(
    context: Context, rows: PackedDocuments, config: ModelConfig, pad: int
) -> Begin | None:
    """How the rows start; None leaves them as they were stacked."""
    start = context.stage.settings.get("start", "stacked")
    if start == "random":
        return functools.partial(start_at_random, seed=context.recipe.seed)
    if start == "centroids":
        owners = _owners(context, rows.source_names, config)
        return functools.partial(
            start_at_centroids, rows=rows, owners=owners, experts=config.all_expert_names,
            pad_id=pad,
        )
    return None


def _owners(
    context: Context, source_names: tuple[str, ...], config: ModelConfig
) -> list[int]:
    """The expert of each source: its domain's, or the anchor where several domains mix it in.

    Raises BarError if an expert is left without one.
    """
    domains = {name: {source_name(source) for source in routing_data(domain)}
               for name, domain in context.recipe.domains.items()}
    uses = Counter(source for named in domains.values() for source in named)
    owners = []
    for source in source_names:
        domain = next(name for name, named in domains.items() if source in named)
        owners.append(0 if uses[source] > 1 else config.expert_id(domain))
    for expert, name in enumerate(config.all_expert_names):
        if expert not in owners:
            whose = "data that several domains mix in" if expert == 0 else "SFT data of its own"
            raise BarError(f"{context.stage.name}: start centroids needs {whose} for expert "
                           f"{name}; set route.start to stacked or random")
    return owners


def router_drift(before: Path, after: Path) -> dict[str, list[list[float]]]:
    """How far training moved each row from where it was stacked, by layer and expert.

    `relative`: the length of the move over that of the stacked row; `cosine`: of the angle between
    both.
    """
    drift: dict[str, list[list[float]]] = {"relative": [], "cosine": []}
    readers = CheckpointReader(before), CheckpointReader(after)
    for slot in slots(ModelConfig.load(after)):
        if slot.name is ROUTER_NAME:
            old_EH, new_EH = (reader.read(slot).double() for reader in readers)
            moved_E = (new_EH - old_EH).norm(dim=1) / old_EH.norm(dim=1).clamp_min(1e-30)
            drift["relative"].append(moved_E.tolist())
            drift["cosine"].append(torch.cosine_similarity(old_EH, new_EH).tolist())
    return drift
