"""`route`: train the merged model's router, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.deciding import Relevance
from megatron_bar.recipe.fields import key
from megatron_bar.recipe.training import Source
from megatron_bar.stages.rows_stage import RowsStage

if TYPE_CHECKING:
    import numpy as np

    from megatron_bar.data.store import StoredDocuments
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.stages.context import Context

ROUTE_GROUPS = ("router.*",)


@dataclass(frozen=True, kw_only=True)
class RouteStage(RowsStage):
    """Learns from a share of every source in `sampled`, which are the domains' SFT data.

    It takes the same share of each, however a domain mixes them. The other fields are those of
    `recipe.schema.Route`.
    """

    fraction: float
    sampled: dict[str, list[Source]]  # by domain
    start: str = "stacked"
    experts_per_token: int | None = key(None, formerly="active")
    renormalize: bool = False
    load_balancing_loss: float = key(0.0, formerly="load_balancing")

    KIND = "route"
    LABEL = "train the router"
    RELEVANCE = Relevance(ignored=frozenset({"weight", "repeat"}), names_matter=True)

    def sources(self) -> list[Source]:
        """Every source of every domain once (`data.mixture.distinct_sources`)."""
        from megatron_bar.data.mixture import distinct_sources

        return distinct_sources(self.sampled)

    def taken(self, stored: Mapping[str, StoredDocuments], seed: int) -> Mapping[str, np.ndarray]:
        from megatron_bar.data.mixture import stratified

        sizes = {name: len(documents) for name, documents in stored.items()}
        return stratified(sizes, self.fraction, seed)

    def file_tokens(self) -> float | None:
        tokens = super().file_tokens()
        return None if tokens is None else tokens * self.fraction

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return self.routed(inputs[0])

    def routed(self, merged: ModelConfig) -> ModelConfig:
        """The model that it makes of the merged one."""
        return dataclasses.replace(
            merged,
            experts_per_token=self.experts_per_token or merged.num_experts,
            renormalize=self.renormalize,
        )

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.stages.work.route import train_router

        return train_router(context)

    @property
    def recipe_section(self) -> str:
        return "route.training"

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        if first == "sampled":
            domain, *others = rest
            return "domains", domain, "sft", "data", *others
        if first in ("seed", "chat_template", "training"):
            return super()._recipe_key(first, *rest)
        return self.KIND, first, *rest
