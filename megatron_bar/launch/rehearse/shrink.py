"""The sizes of a small model that is like a large one in all that can go wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_bar.models.config import ModelConfig, SlidingWindow
from megatron_bar.runtime.layout import Layout

_HIDDEN = 64  # about; the vocabulary's rows are what costs
_FEWEST = 2  # layers, and kv heads where the model has several
_SMALLEST_HEAD = 8


@dataclass(frozen=True)
class SmallModel:
    """A small model, and which layers of the large one its layers stand for."""

    model: ModelConfig
    layers: tuple[int, ...]


def shrunken(model: ModelConfig, layouts: Sequence[Layout], window: int) -> SmallModel:
    """`model`, narrow and of few layers, such that each of `layouts` can hold it.

    Vocabulary, RoPE, norms and the ratios of heads to kv heads and to the hidden width stay. Where
    layers slide there is a sliding and a full one at least, and a sliding one sees at most `window`
    positions.
    """
    tensor = math.lcm(
        *(size for each in layouts for size in (each.tensor, each.resolved_expert_tensor))
    )
    pipeline = math.lcm(*(each.pipeline for each in layouts))
    kv_heads = math.lcm(tensor, min(_FEWEST, model.num_kv_heads))
    heads = kv_heads * (model.num_heads // model.num_kv_heads)
    share = max(_SMALLEST_HEAD, _HIDDEN // heads // 2 * 2)
    hidden = heads * share
    wider = model.num_heads * model.head_dim / model.hidden_size  # the heads than the hidden states
    unit = 8 * tensor
    ffn = -(-hidden * model.ffn_hidden_size // (model.hidden_size * unit)) * unit
    count = -(-_FEWEST // pipeline) * pipeline
    layers = _kept_layers(model, count)
    return SmallModel(
        dataclasses.replace(
            model,
            hidden_size=hidden,
            ffn_hidden_size=ffn,
            num_layers=len(layers),
            num_heads=heads,
            num_kv_heads=kv_heads,
            kv_channels=model.kv_channels and round(share * wider / 2) * 2,
            window=_window(model.window, layers, window),
        ),
        layers,
    )


def _kept_layers(model: ModelConfig, count: int) -> tuple[int, ...]:
    """`count` layers that follow one another, with a sliding and a full one among them."""
    changes = (
        i for i in range(1, model.num_layers) if model.window_of(i) != model.window_of(i - 1)
    )
    start = max(0, min(next(changes, 1) - count + 1, model.num_layers - count))
    return tuple(range(start, start + count))


def _window(window: SlidingWindow | None, layers: Sequence[int], most: int) -> SlidingWindow | None:
    if window is None:
        return None
    full = tuple(i for i, layer in enumerate(layers) if layer in window.full_layers)
    return SlidingWindow(min(most, window.size), full)
