"""What an OLMo-2, OLMo-3 or FlexOlmo model looks like, independent of any library."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json
from megatron_bar.runtime.layout import Layout

FILE_NAME = "model.json"


@dataclass(frozen=True)
class Yarn:
    """YaRN's scaling of RoPE for long contexts (arXiv 2309.00071).

    Over `original_max_position_embeddings` positions, angles that turn more than `beta_fast` times
    keep their speed, those that turn less than `beta_slow` times are slowed down by `factor`, and
    a ramp lies between. Rotated queries and keys are each multiplied by `attention_factor`.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class Olmo3:
    """What OLMo-3 adds to OLMo-2.

    A position of a sliding layer sees the last `sliding_window` positions, itself included. The
    layers `full_attention_layers`, counted from 0, see all, and `yarn` scales the RoPE of these
    alone.
    """

    sliding_window: int
    full_attention_layers: tuple[int, ...]
    yarn: Yarn | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model.

    `num_experts` None means a dense model. `experts_per_token` is BAR's k; routing is an fp32
    softmax over all experts, then top-k, whose probabilities are taken as they are, or with
    `renormalize` made to sum to 1. `olmo3` None means OLMo-2, whose layers all see all positions.
    """

    vocab_size: int
    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_position_embeddings: int = 4096
    rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-6
    num_experts: int | None = None
    experts_per_token: int | None = None
    renormalize: bool = False
    expert_names: tuple[str, ...] | None = None
    olmo3: Olmo3 | None = None
    # Of a merged model: the models that its shared parameters are the plain mean of; empty where
    # they are no plain mean. Merging more branches into it needs the number.
    merged_from: tuple[str, ...] | None = None

    def length_warning(self, length: int) -> str | None:
        """What to tell who wants rows of more tokens than the model knows positions, else None."""
        if length <= self.max_position_embeddings:
            return None
        return (f"rows of {length} tokens are longer than the {self.max_position_embeddings} "
                "positions that the model knows; it would have to learn the others here")

    @property
    def all_expert_names(self) -> tuple[str, ...]:
        """A name for each expert, by global id; empty for a dense model."""
        if self.num_experts is None:
            return ()
        numbered = ("anchor", *(f"expert{i}" for i in range(1, self.num_experts)))
        return self.expert_names or numbered

    def expert_id(self, name: str) -> int:
        """The global id of an expert. Raises BarError if there is none of that name."""
        if name not in self.all_expert_names:
            raise BarError(f"there is no expert {name!r}; there are "
                           f"{', '.join(self.all_expert_names) or 'none, the model is dense'}")
        return self.all_expert_names.index(name)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def with_experts(self, num_experts: int, experts_per_token: int | None = None) -> ModelConfig:
        """The same model with `num_experts` FFNs; all are active unless told otherwise."""
        return dataclasses.replace(
            self, num_experts=num_experts, experts_per_token=experts_per_token or num_experts,
            expert_names=None, merged_from=None,
        )

    def without_experts(self) -> ModelConfig:
        """The dense model of the same shape."""
        return dataclasses.replace(
            self, num_experts=None, experts_per_token=None, renormalize=False, expert_names=None,
            merged_from=None,
        )

    def padded_vocab_size(self, tensor: int) -> int:
        """Rows of the embedding and the head: a multiple of 128 per tensor-parallel rank.

        OLMo-2's published vocabulary (100,352) is a multiple already, so it isn't padded up to
        TP 8; OLMo-3's (100,278) is padded to the same number.
        """
        multiple = 128 * tensor
        return -(-self.vocab_size // multiple) * multiple

    def check(self, layout: Layout) -> None:
        """Raise BarError where `layout` can't hold this model."""
        divisions = [
            ("tensor", layout.tensor, "attention heads", self.num_heads),
            ("tensor", layout.tensor, "kv heads", self.num_kv_heads),
            ("tensor", layout.tensor, "ffn columns", self.ffn_hidden_size),
            ("pipeline", layout.pipeline, "layers", self.num_layers),
        ]
        if self.num_experts is not None:
            divisions.append(("expert", layout.expert, "experts", self.num_experts))
            divisions.append(("expert_tensor", layout.resolved_expert_tensor, "ffn columns",
                              self.ffn_hidden_size))
        elif layout.expert > 1:
            raise BarError(f"layout.expert is {layout.expert}, but a dense model has no experts")
        for key, size, what, count in divisions:
            if count % size:
                raise BarError(f"layout.{key} {size} doesn't divide the model's {count} {what}")

    def save(self, folder: Path) -> None:
        write_json(Path(folder) / FILE_NAME, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Read what `save` wrote. Raises BarError if `folder` holds no checkpoint of ours."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise BarError(f"{folder} is not a megatron-bar checkpoint: {FILE_NAME} is missing")
        content: dict[str, Any] = read_json(path)
        for key in ("expert_names", "merged_from"):
            if content.get(key) is not None:
                content[key] = tuple(content[key])
        try:
            if content.get("olmo3"):
                content["olmo3"] = _olmo3(**content["olmo3"])
            return cls(**content)
        except TypeError as error:
            raise BarError(f"{path} was written by another version: {error}") from None


def _olmo3(
    sliding_window: int, full_attention_layers: list[int], yarn: dict[str, Any] | None
) -> Olmo3:
    return Olmo3(sliding_window, tuple(full_attention_layers), Yarn(**yarn) if yarn else None)


def check_same_shape(
    where: Path | str, model: ModelConfig, other_where: Path | str, other: ModelConfig
) -> None:
    """Raise BarError, with every field that differs, unless two models are equal."""
    if unlike := list(_unlike(model, other)):
        raise BarError(f"{where} and {other_where} are models of different shape: "
                       f"{', '.join(unlike)}")


def _unlike(one: Any, other: Any) -> Iterator[str]:
    """The fields in which two of one kind differ, each with both values."""
    for field in dataclasses.fields(one):
        values = [getattr(config, field.name) for config in (one, other)]
        if all(map(dataclasses.is_dataclass, values)):
            yield from _unlike(*values)
        elif values[0] != values[1]:
            said = [type(value).__name__ if dataclasses.is_dataclass(value) else str(value)
                    for value in values]
            yield f"{field.name} is {said[0]} and {said[1]}"
