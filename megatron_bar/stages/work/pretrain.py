"""A small dense base from scratch, exported as the folders a user would bring.

It stands in for the Hugging Face checkpoints where there are none at hand, as in the toy recipe.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.data import toy
from megatron_bar.data.chat import chat_template
from megatron_bar.data.chat_format import pad_id
from megatron_bar.data.encoding import encode_conversations, encode_texts
from megatron_bar.data.packing import pack_examples, pack_texts
from megatron_bar.data.rows import PackedRows
from megatron_bar.data.sources import load_conversations, load_texts
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.files import write_json
from megatron_bar.stages.context import Context
from megatron_bar.stages.pretrain import HF_FOLDER, PRETRAINED_HF_FOLDER, PretrainStage
from megatron_bar.training.loop import TrainingRun
from megatron_bar.training.model_run import ModelRun


def train_base(context: Context[PretrainStage]) -> dict[str, Any]:
    """Train a tokenizer and a base, and export both; returns facts for stage.json."""
    stage = context.stage
    pretrain, training, seed = stage.pretrain, stage.training, context.recipe.seed
    texts = [text for source in training.data for text in load_texts(source, seed)]
    chats = [c for source in pretrain.chat for c in load_conversations(source, seed)]
    tokenizer_folder = context.folder / "tokenizer"
    if is_main():
        spoken = [m["content"] for c in chats for m in c.messages if m.get("content")]
        _write_tokenizer_files(context, tokenizer_folder, [*texts, *spoken], pretrain.vocab_size)
    dist.barrier()
    tokenizer = load_tokenizer(tokenizer_folder)

    rows = pack_texts(list(encode_texts(tokenizer, texts)), training.sequence_length)
    say(f"texts: {rows.report}")
    if chats:
        template = chat_template(None, tokenizer)
        chat_rows = pack_examples(
            list(encode_conversations(tokenizer, chats, template)),
            training.sequence_length,
            source="chat",
        )
        say(f"chat: {chat_rows.report}")
        rows = _together(rows, chat_rows)

    config = dataclasses.replace(PRESETS[pretrain.model], vocab_size=len(tokenizer))
    snapshot_step = max(1, round(training.total_steps * pretrain.snapshot))
    snapshot = context.folder / "snapshot"
    model = ModelRun(config, None, context.folder, stage.layout, seed, stage.name, tokenizer_folder)
    trained = TrainingRun(
        model, training, rows, pad_id(tokenizer), snapshots={snapshot_step: snapshot}
    ).run()
    if is_main():
        export_hf(context.folder / "checkpoint", context.folder / HF_FOLDER, overwrite=True)
        export_hf(snapshot, context.folder / PRETRAINED_HF_FOLDER, overwrite=True)
    return dataclasses.asdict(trained) | {
        "snapshot_step": snapshot_step,
        "summary": trained.summary,
    }


def _write_tokenizer_files(
    context: Context, folder: Path, texts: list[str], vocab_size: int
) -> None:
    name = context.recipe.chat_template
    template = toy.CHAT_TEMPLATE if name is None else chat_template(name, None)
    tokenizer = train_tokenizer(texts, vocab_size, folder, template)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_json(folder / "token_ids.json", ids)
    stops = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    generation = {"do_sample": False, "eos_token_id": stops, "pad_token_id": ids["pad_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _together(first: PackedRows, second: PackedRows) -> PackedRows:
    count = len(first.source_names)
    return PackedRows(
        np.concatenate([first.tokens_RS, second.tokens_RS]),
        np.concatenate([first.loss_RS, second.loss_RS]),
        np.concatenate([first.documents_RS, second.documents_RS]),
        np.concatenate(
            [first.sources_RS, np.where(second.documents_RS > 0, second.sources_RS + count, -1)]
        ).astype(np.int16),
        first.report,
        first.source_names + second.source_names,
    )
