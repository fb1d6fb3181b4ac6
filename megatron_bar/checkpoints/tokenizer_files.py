"""Tokenizer files, which go along with a model's weights: chat template and generation config too.

A Hugging Face folder has these files beside its weights, a checkpoint in a folder of its own.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, refuse_lfs_pointer, write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FOLDER = "hf"  # of a checkpoint
_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_TEMPLATE, _GENERATION = "chat_template.jinja", "generation_config.json"
TOKENIZER_FILES = (
    _TOKENIZER,
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    _TEMPLATE,
    _GENERATION,
)
_ANY_CLASS = "PreTrainedTokenizerFast"  # reads all that it needs from tokenizer.json
# transformers' own mark of what carries loss, which other programs that serve models don't know.
_MARK = re.compile(r"\{%([-+]?)\s*((?:end)?generation)\s*([-+]?)%\}")
_HIDDEN_MARK = re.compile(r"\{#([-+]?)\s*((?:end)?generation)\s*([-+]?)#\}")


@dataclass(frozen=True)
class ChatFormat:
    """A chat format: the template, and the tokens that end a reply or fill up a row."""

    tokenizer: PreTrainedTokenizerBase
    template: str  # Jinja source
    stop_ids: frozenset[int]  # tokens that end a reply; none where the tokenizer has no eos
    pad_id: int | None

    def write(self, folder: Path) -> None:
        """Make it that of the generation config and the tokenizer in `folder`, which has one."""
        folder = Path(folder)
        write_text(folder / _TEMPLATE, self.template)
        config = _tokenizer_config(folder)
        if config.pop("chat_template", None) is not None:
            write_json(folder / _TOKENIZER_CONFIG, config)
        if stops := sorted(self.stop_ids):
            write_json(
                folder / _GENERATION,
                _object(folder / _GENERATION)
                | {
                    "eos_token_id": stops if stops[1:] else stops[0],
                    "pad_token_id": self.pad_id,
                },
            )


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy the tokenizer files that `source` has, as transformers 4 and 5 both read them."""
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            refuse_lfs_pointer(source / name)
            shutil.copyfile(source / name, target / name)
    if (source / _TOKENIZER).is_file():
        config = _tokenizer_config(source)
        readable = _readable(config)
        if readable != config:
            write_json(target / _TOKENIZER_CONFIG, readable)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or of a checkpoint, whichever transformers saved it.

    Raises BarError if there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    within = _within(folder)
    path = within / _TOKENIZER
    if not path.is_file():
        raise BarError(
            f"{folder} has no {_TOKENIZER}; give or import a Hugging Face folder that "
            "has its tokenizer"
        )
    with _readable_tokenizer(within) as readable:
        try:
            # Said because transformers 4.57.3 to 4.57.6 take a large vocabulary for Mistral's.
            tokenizer = AutoTokenizer.from_pretrained(readable, fix_mistral_regex=False)
        except Exception as error:  # tokenizers raises no other
            reason = " ".join(str(error).split())
            raise BarError(f"{path} and what is beside it make no tokenizer: {reason}") from None
    tokenizer.name_or_path = str(folder)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _HIDDEN_MARK.sub(r"{%\1 \2 \3%}", tokenizer.chat_template)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a Hugging Face folder or a checkpoint has what `load_tokenizer` reads."""
    return (_within(folder) / _TOKENIZER).is_file()


def check_tokens(folder: Path, vocab_size: int) -> None:
    """Raise BarError if the tokenizer in `folder`, if any, has a token that no row is for."""
    if not (Path(folder) / _TOKENIZER).is_file():
        return
    token, number = max(
        load_tokenizer(folder).get_vocab().items(), key=lambda item: item[1], default=("", -1)
    )
    if number >= vocab_size:
        raise BarError(
            f"{folder}: the tokenizer's token {token!r} has id {number}, and the model's "
            f"{vocab_size} rows end at {vocab_size - 1}; take the tokenizer that the model was "
            "trained with, or add rows to the model"
        )


def eos_token_ids(folder: Path) -> set[int]:
    """The tokens that end an answer by the generation config of a Hugging Face folder or of a
    checkpoint; empty if it names none.

    Raises BarError if they are no token ids.
    """
    path = _within(folder) / _GENERATION
    ids = _object(path).get("eos_token_id")
    stops = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(stop, int) for stop in stops):
        raise BarError(f"{path}: eos_token_id {ids!r} is neither a token's id nor a list of them")
    return set(stops)


def for_serving(folder: Path, max_positions: int) -> None:
    """Make the tokenizer files of the export in `folder` what programs that serve models read.

    The marks of the chat template become comments, which render the same everywhere. A length of
    texts that the model hasn't the positions for goes.
    """
    for path in (folder / _TEMPLATE, folder / _TOKENIZER_CONFIG):
        if path.is_file():  # neither file has to escape any part of a mark
            write_text(path, _MARK.sub(r"{#\1 \2 \3#}", path.read_text(encoding="utf-8")))
    config = _object(folder / _GENERATION)
    longest = config.get("max_length")
    if isinstance(longest, int) and longest > max_positions:
        del config["max_length"]
        write_json(folder / _GENERATION, config)


def _within(folder: Path) -> Path:
    """The place of the tokenizer files of a Hugging Face folder or of a checkpoint."""
    within = Path(folder) / TOKENIZER_FOLDER
    return within if within.is_dir() else Path(folder)


@contextlib.contextmanager
def _readable_tokenizer(folder: Path) -> Iterator[Path]:
    """The folder, or a copy of its small files that the installed transformers reads."""
    refuse_lfs_pointer(folder / _TOKENIZER)
    config = _tokenizer_config(folder)
    if _readable(config) == config:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="megatron-bar-") as copy:
        copy_tokenizer_files(folder, Path(copy))
        yield Path(copy)


def _readable(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json without what transformers 5 alone understands."""
    config = dict(config)
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = _ANY_CLASS
    if isinstance(extra := config.get("extra_special_tokens"), list):
        config["extra_special_tokens"] = config.pop("model_specific_special_tokens", {})
        known = config.get("additional_special_tokens") or []
        config["additional_special_tokens"] = [*known, *(t for t in extra if t not in known)]
    return config


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    return _object(Path(folder) / _TOKENIZER_CONFIG)


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; empty if there is none."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise BarError(f"{path} holds a {type(content).__name__}, not a dict")
    return content
