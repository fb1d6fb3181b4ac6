"""The shape of a model, independent of any library and of the family that it is of."""

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
class SlidingWindow:
    """Layers of which a position sees the last `size` positions, itself included.

    The layers `full_layers`, counted from 0, see all.
    """

    size: int
    full_layers: tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model. Fields that may be left out have OLMo-2's values.

    `num_experts` None means a dense model. `experts_per_token` is BAR's k; routing is an fp32
    softmax over all experts, then top-k, whose probabilities are taken as they are, or with
    `renormalize` made to sum to 1.

    Norms come "before" each sub-layer, or "after" it and before the residual is added
    (`norm_placement`). Queries and keys are normed over all heads together, their "full_width", or
    "per_head" (`qk_norm`). `window` None means that all layers see all positions. `yarn` scales the
    RoPE of the layers that do. With `tied_embeddings` they are the head, too.
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
    # Of a merged model: the models that its shared parameters are the plain mean of; empty where
    # they are no plain mean. Merging more branches into it needs the number.
    merged_from: tuple[str, ...] | None = None
    window: SlidingWindow | None = None
    yarn: Yarn | None = None
    kv_channels: int | None = None  # of a head; None: hidden_size / num_heads
    norm_placement: str = "after"
    qk_norm: str = "full_width"
    tied_embeddings: bool = False
    # Of models.families: whose names its tensors and its config.json have. It decides nothing else.
    family: str = "olmo2"

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_heads

    @property
    def ffns_per_layer(self) -> int:
        """The experts of a layer; of a dense model the one FFN."""
        return 1 if self.num_experts is None else self.num_experts

    @property
    def active_ffns(self) -> int:
        """The FFNs of a layer that a token goes to."""
        return self.experts_per_token or self.ffns_per_layer

    @property
    def all_experts_active(self) -> bool:
        """Whether every token goes to all experts; false of a dense model, which has none."""
        return self.num_experts is not None and self.active_ffns == self.num_experts

    def length_warning(self, length: int) -> str | None:
        """A warning about rows of more tokens than the model knows positions, else None."""
        if length <= self.max_position_embeddings:
            return None
        return (
            f"rows of {length} tokens are longer than the {self.max_position_embeddings} "
            "positions that the model knows; it would have to learn the others here"
        )

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
            raise BarError(
                f"there is no expert {name!r}; there are "
                f"{', '.join(self.all_expert_names) or 'none, the model is dense'}"
            )
        return self.all_expert_names.index(name)

    def window_of(self, layer: int) -> int | None:
        """The positions that a layer sees, its own among them; None for one that sees all."""
        if self.window is None or layer in self.window.full_layers:
            return None
        return self.window.size

    def with_experts(self, num_experts: int, experts_per_token: int | None = None) -> ModelConfig:
        """The same model with `num_experts` FFNs; all are active by default."""
        return dataclasses.replace(
            self,
            num_experts=num_experts,
            experts_per_token=experts_per_token or num_experts,
            expert_names=None,
            merged_from=None,
        )

    def without_experts(self) -> ModelConfig:
        """The dense model of the same shape."""
        return dataclasses.replace(
            self,
            num_experts=None,
            experts_per_token=None,
            renormalize=False,
            expert_names=None,
            merged_from=None,
        )

    def padded_vocab_size(self, tensor: int) -> int:
        """Rows of the embedding and the head: a multiple of 128 per tensor-parallel rank.

        OLMo-2's published vocabulary (100,352) is a multiple already, so it isn't padded up to
        TP 8.
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
            divisions.append(
                (
                    "expert_tensor",
                    layout.resolved_expert_tensor,
                    "ffn columns",
                    self.ffn_hidden_size,
                )
            )
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
        try:
            return cls(**_fields(content))
        except (TypeError, KeyError) as error:
            raise BarError(f"{path} was written by another version: {error}") from None


def check_same_shape(
    where: Path | str, model: ModelConfig, other_where: Path | str, other: ModelConfig
) -> None:
    """Raise BarError, with every field that differs, unless two models are equal.

    How many positions they know may differ. Post-training may extend that: Qwen3 knows 40,960, its
    base models 32,768.
    """
    known = dataclasses.replace(other, max_position_embeddings=model.max_position_embeddings)
    if unlike := list(_unlike(model, known)):
        raise BarError(
            f"{where} and {other_where} are models of different shape: {', '.join(unlike)}"
        )


def _unlike(one: Any, other: Any) -> Iterator[str]:
    """The fields in which two of one kind differ, each with both values."""
    for field in dataclasses.fields(one):
        values = [getattr(config, field.name) for config in (one, other)]
        if all(map(dataclasses.is_dataclass, values)):
            yield from _unlike(*values)
        elif values[0] != values[1]:
            said = [
                type(value).__name__ if dataclasses.is_dataclass(value) else str(value)
                for value in values
            ]
            yield f"{field.name} is {said[0]} and {said[1]}"


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model.json, of this version or of the first one.

    That had OLMo-2 alone, and what OLMo-3 adds to it under a key of its own.
    """
    fields = dict(content)
    if olmo3 := fields.pop("olmo3", None):
        fields |= {
            "family": "olmo3",
            "yarn": olmo3["yarn"],
            "window": {
                "size": olmo3["sliding_window"],
                "full_layers": olmo3["full_attention_layers"],
            },
        }
    for key in ("expert_names", "merged_from"):
        if fields.get(key) is not None:
            fields[key] = tuple(fields[key])
    if window := fields.get("window"):
        fields["window"] = SlidingWindow(window["size"], tuple(window["full_layers"]))
    if yarn := fields.get("yarn"):
        fields["yarn"] = Yarn(**yarn)
    return fields
