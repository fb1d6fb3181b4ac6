"""A model in this process's memory that answers: what a notebook talks to, and `megatron-bar chat`.

Megatron-Core keeps its groups of processes in global state. The first model that is loaded sets
them up for this process alone, and the last one that is closed takes them down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_bar.api.checkpoints import StrPath, as_checkpoint
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.checkpoints.number_types import compute_type
from megatron_bar.data.chat import prompt_ids
from megatron_bar.data.chat_format import check_prompt_length, load_chat_format
from megatron_bar.generation.engine import Sampling
from megatron_bar.generation.stream import StreamedToken, stream_tokens
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import LanguageModel, build_model
from megatron_bar.models.router import leave_out
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

Message = dict[str, Any]


@dataclass(frozen=True)
class Word:
    """A token of an answer, with its text as far as that is sure; a character may need several."""

    text: str
    token: StreamedToken


@dataclass(frozen=True)
class Reply:
    """An answer."""

    text: str
    tokens: tuple[StreamedToken, ...] = field(repr=False)  # the one that ends it included
    stopped: bool  # False where it was cut short
    shares: dict[str, float]  # of each expert, the mean over the tokens; empty for a dense model

    def __str__(self) -> str:
        return self.text


class Model:
    """A checkpoint in memory. Close it, or use it in a `with` block, to have the memory back."""

    def __init__(self, checkpoint: Path, template: str | None, dtype: str | None) -> None:
        _one_process.enter()
        try:
            self.config = ModelConfig.load(checkpoint)
            self._format = load_chat_format(checkpoint, template)
            with torch.random.fork_rng(devices=[]):  # who loads a model may be drawing numbers
                self._model: LanguageModel | None = build_model(
                    self.config, Layout(), compute_type(dtype, checkpoint)
                )
            load_model(self._model, checkpoint)
            self._model.eval()
        except BaseException:
            _one_process.leave()
            raise

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of its experts, the anchor first; empty for a dense model."""
        return self.config.all_expert_names

    def leave_out(self, *experts: str) -> None:
        """Give these experts no part in the answers from now on; without a name, none is left out.

        Raises BarError for a name that no expert has.
        """
        leave_out(self._open(), [self.config.expert_id(name) for name in experts])

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generator[Word, None, None]:
        """Words of the answer to a conversation, or to one question, as they come.

        Temperature 0 takes the most likely token; above it tokens are drawn by `seed`.

        Raises BarError for a conversation that the chat template refuses, or that leaves no room
        for an answer.
        """
        model = self._open()
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        prompt = prompt_ids(self._format.tokenizer, asked, self._format.template)
        check_prompt_length(len(prompt), model.max_sequence_length)
        sampling = Sampling(max_new_tokens, self._format.stop_ids, temperature, seed)
        return self._words(stream_tokens(model, prompt, sampling))

    def reply(self, messages: str | Sequence[Message], **options: Any) -> Reply:
        """The whole answer. `options` and errors are those of `stream`."""
        return self.joined(list(self.stream(messages, **options)))

    def chat(self, system: str | None = None, **options: Any) -> Chat:
        """A conversation with the model. `options` are those of `stream`, for each answer."""
        return Chat(self, system, options)

    def joined(self, words: Sequence[Word]) -> Reply:
        """The answer that streamed words are."""
        tokens = tuple(word.token for word in words)
        shares = [sum(of_expert) / len(tokens) for of_expert in zip(*(t.shares for t in tokens))]
        return Reply(
            "".join(word.text for word in words),
            tokens,
            bool(tokens) and tokens[-1].ends,
            dict(zip(self.experts, shares)),
        )

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of each of a row's tokens but the first, at temperature 1."""
        model, found = self._open(), []
        device = torch.device(torch.cuda.current_device())
        for row in rows:
            tokens_BS = torch.tensor([list(row)], device=device)
            positions_BS = torch.arange(len(row), device=device)[None]
            loss_BS = model(tokens_BS, positions_BS, None, labels=tokens_BS.roll(-1, dims=1))
            found.append((-loss_BS[0, :-1]).tolist())
        return found

    def close(self) -> None:
        """Let go of the model's memory; closing twice does nothing."""
        if self._model is not None:
            self._model = None
            _one_process.leave()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> LanguageModel:
        if self._model is None:
            raise BarError("the model is closed; load it again")
        return self._model

    def _words(self, tokens: Iterator[StreamedToken]) -> Generator[Word, None, None]:
        ids: list[int] = []
        said = ""
        for token in tokens:
            if token.ends:
                yield Word(self._text(ids)[len(said) :], token)
                return
            ids.append(token.id)
            text = self._text(ids)
            # The bytes of a character that isn't whole yet are shown as this one.
            sure = text if not text.endswith("\ufffd") else said
            yield Word(sure[len(said) :], token)
            said = sure

    def _text(self, ids: list[int]) -> str:
        return self._format.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class Chat:
    """A conversation: remembers what was said, on both sides."""

    def __init__(self, model: Model, system: str | None, options: dict[str, Any]) -> None:
        self.model, self.options = model, options
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def ask(self, text: str) -> Reply:
        """The answer to `text`, after all that was said. Raises as `stream` does."""
        return self.model.joined(list(self.stream(text)))

    def stream(self, text: str) -> Generator[Word, None, None]:
        """Words of the answer as they come; what was said by then stays, where it is left early.

        Raises BarError for a conversation that the template refuses or that is too long. Then
        nothing of it is remembered, as after an answer without words.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        words: list[Word] = []
        try:
            for word in self.model.stream(asked, **self.options):
                words.append(word)
                yield word
        finally:
            if said := "".join(word.text for word in words):
                self.messages = [*asked, {"role": "assistant", "content": said}]


def load(model: StrPath, *, chat_template: str | None = None, dtype: str | None = None) -> Model:
    """Load a checkpoint, a stage's folder or a Hugging Face model into this process's memory.

    `chat_template` is olmo, tulu or a .jinja file; by default what it was trained with, or its
    tokenizer's own. `dtype` is what it computes in, by default what it is stored in. On a GPU it
    takes the current one.

    Raises BarError for a model that isn't there or can't be read.
    """
    with as_checkpoint(model) as checkpoint:
        return Model(checkpoint, chat_template, dtype)


class _OneProcess:
    """Megatron's groups of this process alone, there as long as anyone uses them."""

    def __init__(self) -> None:
        self._users = 0
        self._groups = contextlib.ExitStack()

    def enter(self) -> None:
        if not self._users:
            if "RANK" in os.environ or dist.is_initialized():
                raise BarError(
                    "this process belongs to a group of processes already, and a model "
                    "is loaded by one that is alone; load it in another process"
                )
            with torch.random.fork_rng(devices=[]):
                self._groups.enter_context(process_groups(Layout()))
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._groups.close()


_one_process = _OneProcess()
