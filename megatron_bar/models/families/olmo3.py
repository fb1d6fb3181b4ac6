"""OLMo-3: OLMo-2 whose layers see a sliding window, but for each fourth, which sees all.

YaRN scales the RoPE of those that see all. 7B is as in the config.json of Olmo-3-7B-Instruct and
-Think, 32B of Olmo-3-32B-Think, by a published survey of the three (commits 096bb54, 7c991fd,
ebd033e); the base models' own files were not seen.
"""

from __future__ import annotations

from typing import Any

from megatron_bar.models.config import ModelConfig, SlidingWindow, Yarn
from megatron_bar.models.families.family import Family, HfClass
from megatron_bar.models.families.keys import FULL, SLIDING, group, whole
from megatron_bar.models.families.olmo2 import ONLY, TENSORS, refuse_head_dim
from megatron_bar.models.families.rope_keys import (
    joined,
    one_theta,
    read_yarn,
    rope_type,
    written_yarn,
)
from megatron_bar.runtime.errors import BarError

_VOCAB, _CONTEXT = 100_278, 65_536
# 0.1 ln(factor) + 1, as YaRN has it.
_YARN = Yarn(8.0, 8192, attention_factor=1.2079441541679836)
# What transformers 5 takes sliding layers to have where rope_parameters doesn't tell.
_THETA = 500_000.0
_NOTE = """\

transformers computes it since 4.57. Releases 5.0 to 5.12 scale RoPE in sliding layers too, which
gives wrong logits ([#45945](https://github.com/huggingface/transformers/pull/45945)); 5.13 is right
again.
"""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    refuse_head_dim(config)
    theta, yarn = _rope(config)
    layers = whole(config, "num_hidden_layers")
    # transformers' default: each fourth layer sees all.
    types = config.get("layer_types") or [FULL if i % 4 == 3 else SLIDING for i in range(layers)]
    if (
        not isinstance(types, list)
        or len(types) != layers
        or any(kind not in (SLIDING, FULL) for kind in types)
    ):
        raise BarError(f"layer_types is not one of {SLIDING}, {FULL} for each of {layers} layers")
    full = tuple(i for i, kind in enumerate(types) if kind == FULL)
    window = SlidingWindow(whole(config, "sliding_window"), full)
    return {"rope_theta": theta, "yarn": yarn, "window": window}


def _rope(config: dict[str, Any]) -> tuple[float, Yarn | None]:
    """RoPE's base, and the scaling of the layers that see all positions.

    transformers 4 is understood to leave sliding layers alone. transformers 5 has rope_parameters
    by layer type since 5.13. 5.0 to 5.12 scaled sliding layers too (huggingface/transformers
    #45945), so a rope_parameters for all layers at once has no one meaning.
    """
    parameters = group(config, "rope_parameters")
    by_type = bool({SLIDING, FULL} & set(parameters))
    sliding = group(parameters, SLIDING) if by_type else parameters
    full = group(parameters, FULL) if by_type else parameters
    theta = one_theta(config, None, sliding, full)  # transformers 4 and 5 have other defaults
    full = joined(full, group(config, "rope_scaling"))
    if rope_type(sliding) != "default":
        raise BarError(
            "rope_parameters scales RoPE in sliding layers, as transformers 5.0 to 5.12 did by "
            "mistake; OLMo-3 scales full_attention alone, so give one dict for each layer type"
        )
    return theta, read_yarn(full, whole(config, "max_position_embeddings"))


def _write(model: ModelConfig) -> dict[str, Any]:
    assert model.window is not None  # every OLMo-3 has one
    # As the published checkpoints have it, which most software reads.
    config: dict[str, Any] = {
        "sliding_window": model.window.size,
        "layer_types": [
            FULL if model.window_of(layer) is None else SLIDING for layer in range(model.num_layers)
        ],
    }
    yarn = written_yarn(model.yarn) if model.yarn else None
    if yarn:
        config["rope_scaling"] = yarn
    if model.rope_theta != _THETA:  # which transformers 5 wants said by layer type
        theta = {"rope_theta": model.rope_theta}
        config["rope_parameters"] = {
            SLIDING: {"rope_type": "default"} | theta,
            FULL: (yarn or {"rope_type": "default"}) | theta,
        }
    return config


def _size(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    window = SlidingWindow(4096, tuple(range(3, layers, 4)))
    return ModelConfig(
        _VOCAB,
        hidden,
        ffn,
        layers,
        heads,
        kv_heads,
        _CONTEXT,
        family="olmo3",
        window=window,
        yarn=_YARN,
    )


FAMILY = Family(
    name="olmo3",
    title="OLMo-3",
    dense=HfClass(
        "olmo3",
        "Olmo3ForCausalLM",
        _read,
        _write,
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        only=ONLY,
    ),
    mixture=None,
    no_mixture="FlexOlmo has no sliding window",
    tensors=TENSORS,
    presets={
        "olmo3-7b": _size(4096, 11008, 32, 32, 32),
        "olmo3-32b": _size(5120, 27648, 64, 40, 8),
    },
    note=_NOTE,
)
