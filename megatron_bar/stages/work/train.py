"""Training on rows of tokens, and the proof that frozen meant frozen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_bar.checkpoints.merge_plan import ANCHOR_FFN
from megatron_bar.checkpoints.token_counts import read_token_counts, write_token_counts
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.data.chat_format import pad_id
from megatron_bar.data.rows import Rows
from megatron_bar.data.token_counts import count_tokens
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context
from megatron_bar.stages.rows_stage import RowsStage
from megatron_bar.stages.work.data import stage_rows, validation_rows
from megatron_bar.stages.work.out_of_memory import explain_out_of_memory
from megatron_bar.stages.work.tokenizer_files import trained_tokenizer_files
from megatron_bar.training.groups import group_digests_by_ranks, group_sizes, matching
from megatron_bar.training.loop import TrainingRun
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.objective import TOKENS, Objective
from megatron_bar.training.setup import Initializer


class FrozenChanged(BarError):
    """Parameters that a stage froze are not what they were before it."""


def train_from_start(context: Context[RowsStage]) -> dict[str, Any]:
    """Train the model of the input `start` on the stage's rows; returns facts for stage.json."""
    start = context.checkpoint("start")
    tokenizer = load_tokenizer(start)
    rows, facts = stage_rows(context, tokenizer)
    return train_on(context, tokenizer, rows, facts, ModelConfig.load(start))


def train_on(
    context: Context[RowsStage],
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    facts: dict[str, Any],
    config: ModelConfig,
    initialize: Initializer | None = None,
    load_balancing_loss: float = 0.0,
    objective: Objective = TOKENS,
) -> dict[str, Any]:
    """Train `config`'s model from the input `start` on `rows`; returns `facts` and more.

    `initialize` and `load_balancing_loss` are those of `training.setup`.
    """
    validation = validation_rows(context, tokenizer)
    stage = context.stage
    run = model_run(context, config)
    with explain_out_of_memory(run, stage.training):
        trained = TrainingRun(
            run,
            stage.training,
            rows,
            pad_id(tokenizer),
            validation=validation,
            initialize=initialize,
            load_balancing_loss=load_balancing_loss,
            objective=objective,
        ).run()
    if stage.domain is not None and is_main():
        _count_tokens(context, rows, config.vocab_size)
    proof = proof_of_freezing(context, stage.training.trainable, trained.summary)
    return facts | dataclasses.asdict(trained) | proof if is_main() else {}


def _count_tokens(context: Context[RowsStage], rows: Rows, vocab_size: int) -> None:
    """Leave with the checkpoint how often the branch has read each token, up to this stage."""
    before_V = read_token_counts(context.checkpoint("start"))
    counts_V = count_tokens(rows, vocab_size)
    write_token_counts(
        context.folder / "checkpoint", counts_V if before_V is None else before_V + counts_V
    )


def model_run(context: Context, config: ModelConfig) -> ModelRun:
    """`config`'s model on its way from the input `start`, in the context's stage."""
    return ModelRun(
        config,
        context.checkpoint("start"),
        context.folder,
        context.stage.layout,
        context.recipe.seed,
        context.stage.name,
        trained_tokenizer_files(context),
    )


def proof_of_freezing(context: Context, trainable: Sequence[str], summary: str) -> dict[str, Any]:
    """The facts that show that all groups but `trainable` are what they were, to the bit.

    Their digests, and the anchor's if the model has one, are taken from the checkpoints before and
    after: all ranks call this, and each reads its share of both. The seconds are among the facts.
    What could be wrong by the types and shapes of tensors is refused before the first step
    (`training.setup`).

    Raises FrozenChanged where one differs; the checkpoint stays, to be looked at.
    """
    started = time.monotonic()
    start = context.checkpoint("start")
    groups = list(group_sizes(ModelConfig.load(start)))
    open_groups = matching(groups, trainable, context.stage.name)
    frozen = [group for group in groups if group not in open_groups]
    digested = {*frozen, *({ANCHOR_FFN} & set(groups))}
    before, after = (
        group_digests_by_ranks(checkpoint, digested)
        for checkpoint in (start, context.folder / "checkpoint")
    )
    moved = [group for group in frozen if before[group] != after[group]]
    if moved:
        raise FrozenChanged(
            f"{context.stage.name} changed parameters that it froze: {', '.join(moved)}; this is a "
            f"fault of megatron-bar or of the disk, not of the recipe. {start} is what it was, and "
            f"{context.folder / 'checkpoint'} is not to be used"
        )
    facts: dict[str, Any] = {
        "summary": summary,
        "open_groups": open_groups,
        "proof_seconds": round(time.monotonic() - started, 2),
    }
    if frozen:
        facts["summary"] += ", frozen parameters bit-identical"
    if ANCHOR_FFN in digested:
        facts["anchor_digest"] = {"before": before[ANCHOR_FFN], "after": after[ANCHOR_FFN]}
    return facts
