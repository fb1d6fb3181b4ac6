"""Branch, Adapt, Route: modular post-training of language models on Megatron-Core.

What is named in `__all__` is the Python API (docs/python-api.md). Each name is loaded when it is
first used, since most of them load torch and Megatron-Core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

import megatron_bar.runtime  # noqa: F401  (first of all: it quiets the libraries)

if TYPE_CHECKING:
    from megatron_bar.api.checkpoints import (
        Checkpoint,
        MergedCheckpoint,
        branch,
        export_hf,
        import_hf,
        merge,
    )
    from megatron_bar.api.model import Chat, Model, Reply, Word, load
    from megatron_bar.api.runs import Run, load_recipe, run
    from megatron_bar.api.training import dpo, midtrain, reinforce, route, sft
    from megatron_bar.recipe.schema import (
        Domain,
        Evaluate,
        Merge,
        Pretrain,
        Recipe,
        Route,
    )
    from megatron_bar.recipe.training import Dpo, Rlvr, RouteTraining, Source, Training
    from megatron_bar.runtime.errors import BarError
    from megatron_bar.runtime.layout import Layout
    from megatron_bar.runtime.stopping import ContinueLater

__all__ = [  # noqa: RUF022  (by the module that has them)
    "Checkpoint",
    "MergedCheckpoint",
    "branch",
    "export_hf",
    "import_hf",
    "merge",
    "Chat",
    "Model",
    "Reply",
    "Word",
    "load",
    "Run",
    "load_recipe",
    "run",
    "dpo",
    "midtrain",
    "reinforce",
    "route",
    "sft",
    "Domain",
    "Evaluate",
    "Merge",
    "Pretrain",
    "Recipe",
    "Route",
    "Dpo",
    "Rlvr",
    "RouteTraining",
    "Source",
    "Training",
    "BarError",
    "ContinueLater",
    "Layout",
]

_MODULES = {
    "api.checkpoints": (
        "Checkpoint",
        "MergedCheckpoint",
        "branch",
        "export_hf",
        "import_hf",
        "merge",
    ),
    "api.model": ("Chat", "Model", "Reply", "Word", "load"),
    "api.runs": ("Run", "load_recipe", "run"),
    "api.training": ("dpo", "midtrain", "reinforce", "route", "sft"),
    "recipe.schema": ("Domain", "Evaluate", "Merge", "Pretrain", "Recipe", "Route"),
    "recipe.training": ("Dpo", "Rlvr", "RouteTraining", "Source", "Training"),
    "runtime.errors": ("BarError",),
    "runtime.stopping": ("ContinueLater",),
    "runtime.layout": ("Layout",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
