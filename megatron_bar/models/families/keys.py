"""Values of a config.json, checked, and what several classes of transformers call alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError

SLIDING, FULL = "sliding_attention", "full_attention"  # of layer_types
# What config.json says beyond transformers' keys, which it carries along: the experts' names, and
# the models that shared parameters are the mean of. Merging branches into the model needs both.
_OURS = "megatron_bar"
_OUR_KEYS = ("expert_names", "merged_from")


def positive(key: str, value: Any) -> float:
    """Raises BarError unless `value`, that of `key`, is a positive number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise BarError(f"{key} {value!r} is not a positive number")
    return float(value)


def whole(config: Mapping[str, Any], key: str) -> int:
    """Raises BarError unless `key` is there and a positive whole number."""
    if key not in config:
        raise BarError(f"{key} is missing")
    if not positive(key, config[key]).is_integer():
        raise BarError(f"{key} {config[key]!r} is not a whole number")
    return int(config[key])


def flag(config: Mapping[str, Any], key: str) -> bool:
    """False where `key` is left out. Raises BarError for what is neither true nor false."""
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise BarError(f"{key} {value!r} is neither true nor false")
    return value


def group(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The part of `config` under `key`, without what is null there; empty if it has nothing.

    Raises BarError for what is no dict.
    """
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise BarError(f"{key} {value!r} is not a dict")
    return {name: inner for name, inner in value.items() if inner is not None}


def refuse_sliding(config: Mapping[str, Any]) -> None:
    """Raises BarError where a layer doesn't see all positions."""
    if config.get("sliding_window") is not None or SLIDING in (config.get("layer_types") or ()):
        raise BarError("a sliding window is not supported in a model of this type")


def read_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig about experts, as FlexOlmo's and Qwen3-MoE's classes have them.

    Raises BarError for a routing that can't be.
    """
    if "num_local_experts" in config:  # as transformers 5 calls it in some classes
        config = {"num_experts": config["num_local_experts"], **config}
    count, active = (whole(config, key) for key in ("num_experts", "num_experts_per_tok"))
    if active > count:
        raise BarError(f"num_experts_per_tok {active} is more than num_experts {count}")
    renormalize = flag(config, "norm_topk_prob")
    if renormalize and active == 1:
        raise BarError(
            "norm_topk_prob with num_experts_per_tok 1 gives every token's expert "
            "weight 1, so that the router has nothing to learn from"
        )
    return dict(
        num_experts=count,
        experts_per_token=active,
        renormalize=renormalize,
        **_names(config, count),
    )


def _names(config: Mapping[str, Any], num_experts: int) -> dict[str, tuple[str, ...]]:
    ours = group(config, _OURS)
    found = {key: ours[key] for key in _OUR_KEYS if key in ours}
    for key, names in found.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BarError(f"{_OURS}.{key} {names!r} is not a list of names")
    names = found.get("expert_names", range(num_experts))
    if len(set(names)) != num_experts:
        raise BarError(f"{_OURS}.expert_names {names!r} doesn't name each of {num_experts} experts")
    return {key: tuple(value) for key, value in found.items()}


def written_experts(model: ModelConfig) -> dict[str, Any]:
    """Keys of config.json that `read_experts` reads."""
    ours = {key: list(names) for key in _OUR_KEYS if (names := getattr(model, key)) is not None}
    return {
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": model.renormalize,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        **({_OURS: ours} if ours else {}),
    }
