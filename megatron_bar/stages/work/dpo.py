"""Direct preference optimization: what the reference policy says, and the training."""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.data.chat_format import pad_id
from megatron_bar.data.pairs import PairBatches
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import is_main, on_main
from megatron_bar.runtime.files import read_json, write_json
from megatron_bar.stages.context import Context
from megatron_bar.stages.dpo import DpoStage
from megatron_bar.stages.work.data import stage_rows
from megatron_bar.stages.work.train import train_on
from megatron_bar.training.objective import ChosenOverRejected, PreferenceLoss
from megatron_bar.training.row_losses import row_losses

REFERENCE_FILE = "reference.json"


def train_on_preferences(context: Context[DpoStage]) -> dict[str, Any]:
    """Train the model of the input `start` on pairs; returns facts for stage.json.

    The reference policy is that model. Before the first step it says once what it thinks of every
    pair, which is kept in the stage's folder, so that no second model stands in memory and a stage
    that goes on compares with the same numbers.
    """
    start, training = context.checkpoint("start"), context.stage.training
    tokenizer, layout = load_tokenizer(start), context.stage.layout
    whole_rows, facts = stage_rows(context, tokenizer)
    # Ranks that send each other tokens, of experts or to the next layers, need equally many.
    rows = PairBatches(whole_rows, trims=layout.pipeline == layout.expert == 1)
    difference = ChosenOverRejected(training.length_normalized)

    def ask_reference(model: LanguageModel) -> None:
        path = context.folder / REFERENCE_FILE
        known = on_main(lambda: read_json(path) if path.is_file() else None)
        if known is None:
            say(f"{context.stage.name}: the reference policy reads {len(rows)} pairs")
            known = row_losses(model, rows, pad_id(tokenizer), training, difference)
            if is_main():
                write_json(path, known)
        rows.reference_R = np.array(known, np.float32)

    return train_on(
        context,
        tokenizer,
        rows,
        facts,
        ModelConfig.load(start),
        initialize=ask_reference,
        objective=PreferenceLoss(training.beta, difference),
    )
