"""How a checkpoint is talked to: its tokenizer, a chat template, and where its answers end."""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_bar.checkpoints.companions import (
    COMPANION_FOLDER,
    ChatFormat,
    load_tokenizer,
    told_stops,
)
from megatron_bar.data.reply_ends import reply_ends
from megatron_bar.evaluation.model import Speaker
from megatron_bar.runtime.distributed import is_main
from megatron_bar.stages.context import Context
from megatron_bar.stages.work.data import named_template, pad_id


def speaker_of(checkpoint: Path, template: str | None) -> Speaker:
    """A checkpoint's tokenizer, and how it is talked to with a template, by default its own.

    An answer ends where the checkpoint's generation config or the template ends one.

    Raises BarError if there is no tokenizer, or no such template.
    """
    tokenizer = load_tokenizer(checkpoint)
    source = named_template(template, tokenizer)
    stops = told_stops(Path(checkpoint) / COMPANION_FOLDER) or {tokenizer.eos_token_id}
    stops |= reply_ends(tokenizer, source)
    return Speaker(source, frozenset(stops - {None}), pad_id(tokenizer), tokenizer)


def format_of(checkpoint: Path, template: str | None) -> ChatFormat | None:
    """How a checkpoint is talked to, as `speaker_of` says; None if it carries nothing to talk with.

    Raises BarError for a `template` that there isn't, or that has no tokenizer to go with.
    """
    tokenizer = Path(checkpoint) / COMPANION_FOLDER / "tokenizer.json"
    if template is None and not (tokenizer.is_file() and load_tokenizer(checkpoint).chat_template):
        return None
    return speaker_of(checkpoint, template)


def trained_companions(context: Context) -> Path:
    """The folder of what goes along with the checkpoints of a stage that trains on conversations.

    It is the start's, with the chat format that the recipe names: whoever has the checkpoint and
    no recipe talks to it as it was trained. Filled by the main rank, which alone copies from it.
    """
    start, template = context.checkpoint("start"), context.stage.chat_template
    if template is None or "chat_template" in context.stage.LOOKS.not_at:
        return start / COMPANION_FOLDER
    folder = context.folder / "tokenizer"
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start / COMPANION_FOLDER, folder)
        speaker_of(start, template).write(folder)
    return folder
