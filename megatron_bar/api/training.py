"""Training from Python: a function for each kind that a recipe knows, between two checkpoints.

They read the recipe's own settings (`Training`, `Dpo`, `Rlvr`, `Route`), and train in ranks of this
machine, as many as the settings' layout says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_bar.api.checkpoints import Checkpoint, StrPath, checkpoint_folder
from megatron_bar.launch.alone import train_alone
from megatron_bar.methods import bar
from megatron_bar.methods.graph import DENSE_GROUPS, ROUTE_EPOCHS
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.layers import overridden
from megatron_bar.recipe.paths import all_located
from megatron_bar.recipe.schema import Route
from megatron_bar.recipe.training import Dpo, Rlvr, Source, Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.dpo import DpoStage
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.route import ROUTE_GROUPS, RouteStage
from megatron_bar.stages.train import MidtrainStage, SftStage
from megatron_bar.stages.training_stage import TrainingStage, with_groups


def midtrain(
    start: StrPath, training: Training, out: StrPath, *, seed: int = 0, overwrite: bool = False
) -> Checkpoint:
    """Train a branch's expert (or all of a dense model) on texts; see `sft`."""
    return _adapt(MidtrainStage, start, training, out, None, seed, overwrite)


def sft(
    start: StrPath,
    training: Training,
    out: StrPath,
    *,
    chat_template: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Checkpoint:
    """Train the checkpoint `start` on conversations; returns what it becomes, `out`/checkpoint.

    In a branch the parameters train that BAR trains, in a dense model all, unless
    `training.trainable` says otherwise; what is frozen is proven to keep its bits. `chat_template`
    is olmo, tulu or a .jinja file, by default the model's own. Beside the checkpoint `out` holds
    metrics.jsonl and what it needs to go on after an interruption: the same call goes on, and does
    nothing once it is done. Tokenized data and the log lie beside `out`.

    Raises BarError with all that is wrong before the first step, for a training that fails, and
    where `out` holds something else, unless `overwrite`; ContinueLater when it was interrupted.
    """
    return _adapt(SftStage, start, training, out, chat_template, seed, overwrite)


def dpo(
    start: StrPath,
    training: Dpo,
    out: StrPath,
    *,
    chat_template: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Checkpoint:
    """Train the checkpoint `start` on preference pairs; see `sft`."""
    return _adapt(DpoStage, start, training, out, chat_template, seed, overwrite)


def reinforce(
    start: StrPath,
    training: Rlvr,
    out: StrPath,
    *,
    chat_template: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Checkpoint:
    """Train the checkpoint `start` by RLVR, on answers that a verifier scores; see `sft`."""
    return _adapt(RlvrStage, start, training, out, chat_template, seed, overwrite)


def route(
    merged: StrPath,
    settings: Route,
    data: Mapping[str, Sequence[Source]],
    out: StrPath,
    *,
    chat_template: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Checkpoint:
    """Train the router of a merged checkpoint, and nothing else; see `sft`.

    `data` has the conversations of each domain, by the name of its expert, of which
    `settings.fraction` is sampled.
    """
    settings = _settled(settings, Route, "route")
    domains = {
        name: [_settled(source, Source, f"route: data of {name}") for source in sources]
        for name, sources in data.items()
    }
    if not any(domains.values()):
        raise BarError("route: data is empty; give the conversations of at least one domain")
    training: Training = settings.training
    if (training.steps, training.epochs, training.tokens) == (None, None, None):
        training = dataclasses.replace(training, epochs=ROUTE_EPOCHS)
    return _train(
        RouteStage,
        merged,
        with_groups(training, ROUTE_GROUPS),
        out,
        chat_template,
        seed,
        overwrite,
        fraction=settings.fraction,
        sampled=domains,
        start=settings.start,
        experts_per_token=settings.experts_per_token,
        renormalize=settings.renormalize,
        load_balancing_loss=settings.load_balancing_loss,
    )


def _adapt(
    kind: type[TrainingStage],
    start: StrPath,
    training: Training,
    out: StrPath,
    chat_template: str | None,
    seed: int,
    overwrite: bool,
) -> Checkpoint:
    wanted = {DpoStage: Dpo, RlvrStage: Rlvr}.get(kind, Training)
    training = _settled(training, wanted, kind.KIND)
    model = ModelConfig.load(checkpoint_folder(start))
    groups = DENSE_GROUPS if model.num_experts is None else bar.GROUPS
    return _train(
        kind, start, with_groups(training, groups[kind]), out, chat_template, seed, overwrite
    )


def _train(
    kind: type[TrainingStage],
    start: StrPath,
    training: Training,
    out: StrPath,
    chat_template: str | None,
    seed: int,
    overwrite: bool,
    /,
    **settings: Any,
) -> Checkpoint:
    out = Path(out)
    stage = kind(
        out.name,
        layout=training.layout or Layout(),
        training=training,
        seed=seed,
        chat_template=chat_template,
        **settings,
    )
    return Checkpoint(train_alone(stage, checkpoint_folder(start), out.parent, overwrite))


def _settled(settings: Any, kind: type, where: str) -> Any:
    """Settings as a recipe's are: of the types that they should be, with paths from here."""
    if not isinstance(settings, kind):
        raise BarError(f"{where}: give a {kind.__name__}, not a {type(settings).__name__}")
    return all_located(overridden(settings, [], where))
