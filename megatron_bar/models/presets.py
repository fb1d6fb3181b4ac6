"""Published sizes of all families, and toys, by name."""

from __future__ import annotations

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families import FAMILIES

PRESETS: dict[str, ModelConfig] = {
    name: model for family in FAMILIES.values() for name, model in family.presets.items()
}


def preset_named(folder: str) -> ModelConfig | None:
    """The sizes of a published checkpoint by its folder's name, if it is one."""
    fitting = {
        published: preset
        for family in FAMILIES.values()
        for published, preset in family.published.items()
        if folder.startswith(published)
    }
    return PRESETS[fitting[max(fitting, key=len)]] if fitting else None
