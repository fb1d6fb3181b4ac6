"""Tokenizer files of the checkpoints that a stage makes: tokenizer, chat format, token ids."""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_bar.checkpoints.tokenizer_files import TOKENIZER_FOLDER
from megatron_bar.data.chat_format import load_chat_format
from megatron_bar.recipe.fields import TEXTS
from megatron_bar.runtime.distributed import is_main
from megatron_bar.stages.context import Context


def trained_tokenizer_files(context: Context) -> Path:
    """The folder of tokenizer files that go along with the checkpoints of a training stage.

    It is the start's, with the chat format that the recipe names: whoever has the checkpoint and
    no recipe talks to it as it was trained. Filled by the main rank, which alone copies from it.
    """
    start, template = context.checkpoint("start"), context.stage.chat_template
    if template is None or context.stage.FORM == TEXTS:
        return start / TOKENIZER_FOLDER
    folder = context.folder / "tokenizer"
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start / TOKENIZER_FOLDER, folder)
        load_chat_format(start, template).write(folder)
    return folder
