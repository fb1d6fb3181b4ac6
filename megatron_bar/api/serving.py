"""The exported model on a server of vLLM: what serves it, and whether it is our model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_bar.api.checkpoints import StrPath, checkpoint_folder, exported_by, is_hf
from megatron_bar.api.model import Model
from megatron_bar.generation.openai_api import OpenAIApi
from megatron_bar.generation.probe import distance
from megatron_bar.models.config import FILE_NAME
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.errors import BarError

_ROWS, _TOKENS = 4, 64
_ANSWER_SECONDS = 600.0
# How far two programs may be apart that compute the same model, as in RLVR.
TOLERANCE = Rlvr().max_rollout_logprob_gap


@dataclass(frozen=True)
class Compared:
    """Distances of log-probabilities of the same tokens, from a server and from ours."""

    mean: float
    largest: float
    tokens: int


def serving_commands(
    model: StrPath, name: str | None = None, port: int = 8000, gpus: int = 1
) -> list[list[str]]:
    """The commands that serve a model by vLLM: its export, if it has none yet, and the server.

    `model` is a run's folder, a checkpoint, a Hugging Face folder or a name of the hub; the server
    calls it `name`, by default as its folder is called.

    Raises BarError for a folder that holds no model.
    """
    folder, commands = _served_folder(model)
    serve = [
        "vllm",
        "serve",
        folder,
        "--served-model-name",
        name or _name(model),
        "--port",
        str(port),
    ]
    if gpus > 1:
        serve += ["--tensor-parallel-size", str(gpus)]
    return [*commands, serve]


def _served_folder(model: StrPath) -> tuple[str, list[list[str]]]:
    """What a server loads, and the commands that make it."""
    given = Path(model)
    if (exported := exported_by(given)) is not None:
        return str(exported), []
    if not given.is_dir() or is_hf(given):
        return os.fspath(model), []
    checkpoint = checkpoint_folder(given)
    if not (checkpoint / FILE_NAME).is_file():
        raise BarError(
            f"{given} is neither a run that exported its model nor a checkpoint nor a "
            "Hugging Face folder"
        )
    target = f"{given}-hf"
    made = [] if is_hf(Path(target)) else [["megatron-bar", "export", str(checkpoint), target]]
    return target, made


def _name(model: StrPath) -> str:
    return Path(os.path.abspath(model)).name.partition("@")[0]


def compare_served(model: Model, address: str) -> Compared:
    """Compare what a server at `address` says of fixed tokens with what `model` says of them.

    Raises ServerFault, a BarError, for a server that doesn't answer or answers something else.
    """
    api = OpenAIApi(address.rstrip("/").removesuffix("/v1"), _ANSWER_SECONDS)
    try:
        known = [model.config.max_position_embeddings, *filter(None, [api.longest_row])]
        length = min(_TOKENS, *(positions - 1 for positions in known))
        drawn = np.random.default_rng(0).integers(model.config.vocab_size, size=(_ROWS, length))
        rows = drawn.tolist()
        said = [api.logprobs(row) for row in rows]
    finally:
        api.close()
    ours = model.logprobs(rows)
    gaps = [abs(a - b) for pair in zip(said, ours, strict=True) for a, b in zip(*pair, strict=True)]
    return Compared(distance(said, ours), max(gaps), len(gaps))
