"""flexolmo: BAR with all shared parameters frozen in every stage, so that branches share them.

After FlexOlmo's training of experts (arXiv 2507.07024); in the paper an ablation of BAR.
"""

from __future__ import annotations

from megatron_bar.methods import bar
from megatron_bar.methods.graph import training_of
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import MIDTRAIN_GROUPS

GROUPS = dict.fromkeys(bar.GROUPS, MIDTRAIN_GROUPS)
MODEL = "routed"
MADE = (
    "Its domain experts were trained one at a time beside a frozen anchor, with all shared "
    "parameters frozen too, then a router over all of them (after FlexOlmo, arXiv 2507.07024)."
)


def stages(recipe: Recipe) -> list[Stage]:
    return bar.stages(recipe, GROUPS)


def check(recipe: Recipe) -> None:
    bar.check(recipe)
    for name, domain in recipe.domains.items():
        for kind in GROUPS:
            for group in getattr(training_of(domain, kind), "trainable", ()):
                if not group.startswith(("expert.", "router.")):
                    raise BarError(
                        f"domains.{name}.{kind.KIND}.trainable has {group!r}, and method flexolmo "
                        "keeps all that is shared frozen; leave it out"
                    )
