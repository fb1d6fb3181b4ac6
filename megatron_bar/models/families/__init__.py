"""The families of models, a file each. Nothing outside of this folder knows one by its name.

A family's file says how its config.json and its tensors are named, and its sizes. What it computes
it says in fields of ModelConfig, by which the rest of the project goes.
"""

from __future__ import annotations

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families import olmo2, olmo3, qwen3
from megatron_bar.models.families.family import Family, HfClass
from megatron_bar.runtime.errors import BarError

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        olmo2.FAMILY,
        olmo3.FAMILY,
        qwen3.FAMILY,
    )
}
# Why models that look alike aren't supported, by their model_type.
_REFUSED = {
    "olmo": "the first OLMo norms what a sub-layer takes in, without weights",
    "olmo_hybrid": "OLMo-hybrid has recurrent layers",
}


def family_of(model: ModelConfig) -> Family:
    """The family of `model`. Raises BarError if this version doesn't know it."""
    if model.family not in FAMILIES:
        raise BarError(
            f"the model's family is {model.family!r}, which this version doesn't know; "
            f"there are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model.family]


def family_with(model_type: object) -> tuple[Family, HfClass]:
    """The family and the class of a config.json's model_type. Raises BarError if there is none."""
    known = {hf.model_type: (family, hf) for family in FAMILIES.values() for hf in family.classes}
    if not isinstance(model_type, str) or model_type not in known:
        reason = f" ({why})" if (why := _REFUSED.get(str(model_type))) else ""
        raise BarError(
            f"model_type is {model_type!r}{reason}; only {', '.join(known)} are supported"
        )
    return known[model_type]
