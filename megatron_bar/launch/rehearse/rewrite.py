"""A recipe made short: the same stages on the same sources, with a few steps on a few examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_bar.data.sources import open_source
from megatron_bar.launch.rehearse.fold import folded
from megatron_bar.methods.graph import ADAPTING, route_training, routing_data, training_of
from megatron_bar.recipe.fields import CHATS, ITEMS, PAIRS, PROMPTS, TEXTS
from megatron_bar.recipe.schema import Domain, Evaluate, Pretrain, Recipe
from megatron_bar.recipe.training import Rlvr, Source, Training
from megatron_bar.stages.training_stage import AnyTraining, TrainingStage

_STEPS = 2
_MICRO_BATCHES = 2  # of a rank in a step
# Examples of a source, by what they are read as; few, and enough for some to be short.
_WORDS = "words"  # what a tokenizer is trained on
_COUNTS = {TEXTS: 4, CHATS: 24, PAIRS: 24, PROMPTS: 16, ITEMS: 2, _WORDS: 200}
_SAMPLES = 2  # answers to a prompt, the fewest that can be compared
_ANSWER_TOKENS = 8
_SHARE_DRAWN = 0.5  # of the few conversations that are left for route
_ROW_UNIT = 64  # rows are a multiple of it, so that context and tensor ranks can share them
_SHORTEST_ROW, _LONGEST_ROW = 2 * _ROW_UNIT, 2**20
# Numbers that a row's logits may be on a CPU; on a GPU rows stay as long as they are.
_CPU_LOGITS = 2**25

Lengths = Callable[[Source, str], int]


@dataclass(frozen=True)
class SmallRun:
    """The small models and settings that a rehearsal is made with.

    `longest` is the tokens that a row may have (`longest_row`); `fitting(source, kind)` those that
    it needs to hold some of the source's examples.
    """

    folder: Path  # of all that the rehearsal writes
    name: str  # of its run
    ranks: int
    longest: int
    fitting: Lengths = lambda source, kind: 0
    anchor: Path | None = None
    pretrained: Path | None = None
    branches: dict[str, Path] = dataclasses.field(default_factory=dict)


def longest_row(vocab_size: int) -> int:
    """Tokens that a row may have without taking long on this machine."""
    if torch.cuda.is_available():
        return _LONGEST_ROW
    return max(_SHORTEST_ROW, _CPU_LOGITS // vocab_size // _ROW_UNIT * _ROW_UNIT)


def rewritten(recipe: Recipe, small: SmallRun) -> Recipe:
    """`recipe` with the models, lengths and layouts of a rehearsal, in a folder of its own."""
    return dataclasses.replace(
        recipe,
        name=small.name,
        runs=str(small.folder),
        reuse=[],
        anchor=None if small.anchor is None else str(small.anchor),
        pretrained=None if small.pretrained is None else str(small.pretrained),
        pretrain=recipe.pretrain and _pretrain(recipe.pretrain, recipe, small),
        layout=folded(recipe.layout, small.ranks),
        domains={
            name: _domain(name, domain, recipe, small) for name, domain in recipe.domains.items()
        },
        route=dataclasses.replace(
            recipe.route,
            fraction=max(recipe.route.fraction, _SHARE_DRAWN),
            training=_training(
                route_training(recipe),
                recipe,
                small,
                CHATS,
                [source for domain in recipe.domains.values() for source in routing_data(domain)],
            ),
        ),
        evaluate=_evaluate(recipe.evaluate, recipe, small),
    )


def few(source: Source, seed: int, kind: str) -> Source:
    """`source` with a handful of its examples; `kind` says what they are read as."""
    if source.toy is not None:
        return dataclasses.replace(source, count=min(source.count or 1, _COUNTS[kind]))
    held = len(open_source(source, seed, texts=kind == TEXTS))
    return dataclasses.replace(source, count=min(held, _COUNTS[kind]))


def _domain(name: str, domain: Domain, recipe: Recipe, small: SmallRun) -> Domain:
    def trained(kind: type[TrainingStage]) -> Training | None:
        training = training_of(domain, kind)
        if training is None:
            return None
        # Some methods train all domains in one stage, so that their rows have to be of one length.
        all_data = [
            source
            for each in recipe.domains.values()
            if (one := training_of(each, kind)) is not None
            for source in one.data
        ]
        assert kind.FORM is not None
        return _training(training, recipe, small, kind.FORM, all_data)

    trainings: dict[str, Any] = {kind.KIND: trained(kind) for kind in ADAPTING}
    return dataclasses.replace(
        domain,
        checkpoint=domain.checkpoint and str(small.branches[name]),
        routing=_few(domain.routing, recipe, CHATS),
        tasks=_few(domain.tasks, recipe, ITEMS),
        **trainings,
    )


def _few(sources: Sequence[Source], recipe: Recipe, kind: str) -> list[Source]:
    return [few(source, recipe.seed, kind) for source in sources]


def _training(
    training: AnyTraining, recipe: Recipe, small: SmallRun, kind: str, sources: Sequence[Source]
) -> AnyTraining:
    """`sources` are what the stage reads, which isn't always what its settings name."""
    fold = folded(training.layout or recipe.layout, small.ranks)
    least = max((small.fitting(source, kind) for source in sources), default=0)
    short = dataclasses.replace(
        training,
        steps=_STEPS,
        epochs=None,
        tokens=None,
        data=_few(training.data, recipe, kind),
        validation=_few(training.validation, recipe, kind),
        validate_every=_STEPS,
        sequence_length=_length(training.sequence_length, small.longest, least),
        global_batch_size=_MICRO_BATCHES * fold.data,
        micro_batch_size=1,
        layout=fold,
        warmup_steps=None if training.warmup_steps is None else 1,
        save_every=1,
        save_every_minutes=None,
        keep=1,
        stop_after_minutes=None,
        log_every=1,
        # What a real run may skip is what a rehearsal is to find.
        on_bad_step="stop",
        spike=None,
        wandb=None,
        mlflow=None,
    )
    if not isinstance(short, Rlvr):
        return short
    answer = min(short.response_length, _ANSWER_TOKENS)
    return dataclasses.replace(
        short,
        steps=1,
        validate_every=1,
        prompts_per_step=fold.data,
        samples_per_prompt=_SAMPLES,
        global_batch_size=fold.data * _SAMPLES,
        response_length=answer,
        prompt_length=_length(short.prompt_length, small.longest - answer, least),
        rollout_batch_size=min(short.rollout_batch_size, 4),
        rollout_servers=[],
        rollout_folder=None,
        rollout_python=None,
        rollout_nodes=0,
        rollout_sleep=False,
        rollouts_ahead=0,
        kl_every=min(short.kl_every, 1),
        # A model that knows nothing earns the same for all its answers.
        filter_zero_std=False,
    )


def _length(real: int, longest: int, least: int) -> int:
    """Rows as long as the real ones, or as may be, but long enough to hold examples."""
    return min(real, max(longest, -(-least // _ROW_UNIT) * _ROW_UNIT))


def _pretrain(pretrain: Pretrain, recipe: Recipe, small: SmallRun) -> Pretrain:
    return dataclasses.replace(
        pretrain,
        model="toy",
        chat=_few(pretrain.chat, recipe, _WORDS),
        training=dataclasses.replace(
            _training(pretrain.training, recipe, small, TEXTS, []),
            data=_few(pretrain.training.data, recipe, _WORDS),
        ),
    )


def _evaluate(evaluate: Evaluate, recipe: Recipe, small: SmallRun) -> Evaluate:
    return dataclasses.replace(
        evaluate,
        general=_few(evaluate.general, recipe, ITEMS),
        max_new_tokens=min(evaluate.max_new_tokens, _ANSWER_TOKENS),
        batch_size=min(evaluate.batch_size, 4),
        samples=min(evaluate.samples, _SAMPLES),
        layout=folded(evaluate.layout or recipe.layout, small.ranks),
    )
