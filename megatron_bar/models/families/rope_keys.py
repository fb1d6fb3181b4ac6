"""RoPE in a config.json, as transformers 4 and 5 write it.

transformers 4 has rope_theta and rope_scaling; 5 has rope_parameters, where layers differ one a
layer type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_bar.models.config import Yarn
from megatron_bar.models.families.keys import group, positive, whole
from megatron_bar.runtime.errors import BarError

_YARN = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
Rope = Mapping[str, Any]


def unscaled_theta(config: Mapping[str, Any], default: float) -> float:
    """RoPE's base of a model whose layers rotate alike, or `default` where it is left out.

    Raises BarError where RoPE is scaled.
    """
    parameters = group(config, "rope_parameters")
    theta = one_theta(config, default, parameters)
    rope = joined(parameters, group(config, "rope_scaling"))
    if rope_type(rope) != "default":
        raise BarError(f"rope_type {rope_type(rope)!r} is not supported in a model of this type")
    _refuse_other_keys(rope, ())
    return theta


def one_theta(config: Mapping[str, Any], default: float | None, *parts: Rope) -> float:
    """The one rope_theta that config.json and the parts of its rope_parameters tell.

    Raises BarError where they contradict each other, and where it is left out if the `default` is
    None: transformers 4 and 5 have different ones.
    """
    above = config.get("rope_theta")
    given = [part.get("rope_theta", above) for part in parts]
    if given == [None] * len(parts) and default is not None:
        return default
    if None in given:
        raise BarError("rope_theta is missing, and transformers 4 and 5 take different values then")
    thetas = {positive("rope_theta", theta) for theta in given}
    if len(thetas) > 1:
        raise BarError(f"rope_theta differs between layers: {sorted(thetas)}")
    theta = thetas.pop()
    if above not in (None, theta):
        raise BarError(
            f"rope_theta is {above!r} and within rope_parameters {theta!r}; remove the wrong one"
        )
    return theta


def joined(parameters: Rope, scaling: Rope) -> dict[str, Any]:
    """The one value of rope_parameters and rope_scaling. Raises BarError where they differ."""
    for key in parameters.keys() & scaling.keys():
        if parameters[key] != scaling[key]:
            raise BarError(
                f"{key} is {parameters[key]!r} in rope_parameters and {scaling[key]!r} "
                "in rope_scaling; remove the wrong one"
            )
    return {**parameters, **scaling}


def rope_type(rope: Rope) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def read_yarn(rope: Rope, max_position_embeddings: int) -> Yarn | None:
    """YaRN's scaling, or None where RoPE isn't scaled. Raises BarError for any other scaling."""
    kind = rope_type(rope)
    if kind not in ("default", "yarn"):
        raise BarError(f"rope_type {kind!r} is not supported (only 'default' and 'yarn' are)")
    _refuse_other_keys(rope, _YARN if kind == "yarn" else ())
    if kind == "default":
        return None
    if "factor" not in rope:
        raise BarError("factor of rope_type 'yarn' is missing")
    settings: dict[str, Any] = {key: positive(key, rope[key]) for key in _YARN if key in rope}
    settings.setdefault("attention_factor", 0.1 * math.log(max(settings["factor"], 1.0)) + 1.0)
    original = "original_max_position_embeddings"
    settings[original] = whole({original: max_position_embeddings, **rope}, original)
    return Yarn(**settings)


def written_yarn(yarn: Yarn) -> dict[str, Any]:
    """Keys of config.json that `read_yarn` reads."""
    return {"rope_type": "yarn", **{key: getattr(yarn, key) for key in _YARN}}


def _refuse_other_keys(rope: Rope, known: tuple[str, ...]) -> None:
    if unknown := sorted(set(rope) - {"rope_type", "type", "rope_theta", *known}):
        raise BarError(f"{unknown[0]} of rope_type {rope_type(rope)!r} is not supported")
