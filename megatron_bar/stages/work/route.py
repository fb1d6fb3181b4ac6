"""Training of the merged model's router: where its rows start, and the sample it learns from."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import ROUTER_NAME, slots
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.data.chat_format import pad_id
from megatron_bar.data.packing import PackedDocuments
from megatron_bar.data.sources import open_source, source_name
from megatron_bar.data.store import StoredDocuments
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json_lines
from megatron_bar.stages.context import Context
from megatron_bar.stages.route import RouteStage
from megatron_bar.stages.work.data import Folders, stage_rows
from megatron_bar.stages.work.train import train_on
from megatron_bar.training.router_init import init_at_centroids, init_at_random
from megatron_bar.training.setup import Initializer

SAMPLE = "sample.jsonl"  # in the stage's folder: the conversations that it drew


def train_router(context: Context[RouteStage]) -> dict[str, Any]:
    """Train the router's rows on a sample of all domains' SFT data.

    Raises BarError where rows are to start from centroids and an expert has no data of its own.
    """
    stage, start = context.stage, context.checkpoint("start")
    config = stage.routed(ModelConfig.load(start))
    tokenizer = load_tokenizer(start)
    rows, facts = stage_rows(context, tokenizer, also=_record_sample)
    assert isinstance(rows, PackedDocuments)  # as conversations are
    facts = train_on(
        context,
        tokenizer,
        rows,
        facts,
        config,
        _initializer(context, rows, config, pad_id(tokenizer)),
        stage.load_balancing_loss,
    )
    if is_main():
        facts["router_drift"] = router_drift(start, context.folder / "checkpoint")
    return facts


def _initializer(
    context: Context[RouteStage], rows: PackedDocuments, config: ModelConfig, pad: int
) -> Initializer | None:
    """How the rows start; None leaves them as they were stacked."""
    start = context.stage.start
    if start == "random":
        return functools.partial(init_at_random, seed=context.recipe.seed)
    if start == "centroids":
        owners = _owners(context, rows.source_names, config)
        return functools.partial(
            init_at_centroids,
            rows=rows,
            owners=owners,
            experts=config.all_expert_names,
            pad_id=pad,
        )
    return None


def _owners(
    context: Context[RouteStage], source_names: tuple[str, ...], config: ModelConfig
) -> list[int]:
    """The expert of each source: its domain's, or the anchor where several domains mix it in.

    Raises BarError if an expert is left without one.
    """
    domains = {
        name: set(map(source_name, sources)) for name, sources in context.stage.sampled.items()
    }
    uses = Counter(source for named in domains.values() for source in named)
    owners = []
    for source in source_names:
        domain = next(name for name, named in domains.items() if source in named)
        owners.append(0 if uses[source] > 1 else config.expert_id(domain))
    for expert, name in enumerate(config.all_expert_names):
        if expert not in owners:
            whose = "data that several domains mix in" if expert == 0 else "SFT data of its own"
            raise BarError(
                f"{context.stage.name}: start centroids needs {whose} for expert "
                f"{name}; set route.start to stacked or random"
            )
    return owners


def router_drift(before: Path, after: Path) -> dict[str, list[list[float]]]:
    """The drift of each router row from where it was stacked, by layer and expert.

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


def _record_sample(context: Context[RouteStage], folders: Folders) -> None:
    """Write down what was drawn, a conversation a line: its source, its place and itself."""
    write_json_lines(context.folder / SAMPLE, _drawn(context, folders))


def _drawn(context: Context[RouteStage], folders: Folders) -> Iterator[dict[str, Any]]:
    stored = {name: StoredDocuments(folder) for name, folder in folders.items()}
    taken = context.stage.taken(stored, context.recipe.seed)
    for source in context.stage.sources():
        drawn = open_source(source, context.recipe.seed, texts=False)
        documents = taken[drawn.name]
        items = stored[drawn.name].items_D[documents].tolist()
        chosen = dataclasses.replace(drawn, chosen=[drawn.chosen[item] for item in items])
        for document, conversation in zip(documents.tolist(), chosen.conversations(), strict=True):
            yield {
                "source": drawn.name,
                "document": document,
                "where": conversation.where,
                "messages": conversation.messages,
            }
