"""`midtrain` and `sft`: a domain's expert learns from texts, then from conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megatron_bar.recipe.deciding import Relevance
from megatron_bar.recipe.fields import TEXTS
from megatron_bar.recipe.training import Source, Training
from megatron_bar.stages.rows_stage import RowsStage

# What trains by default in BAR; expert 1 is the branch's domain expert.
MIDTRAIN_GROUPS = ("expert.1", "router.1")
SFT_GROUPS = (*MIDTRAIN_GROUPS, "embeddings", "head", "final_norm")


@dataclass(frozen=True, kw_only=True)
class AdaptStage(RowsStage):
    """One domain's stage, or that of all domains together."""

    # By domain, the trainings whose rows it trains on together.
    parts: dict[str, Training] = field(default_factory=dict)

    def trainings(self) -> Iterator[Training]:
        yield from self.parts.values() or [self.training]

    def sources(self) -> list[Source]:
        return [source for training in self.trainings() for source in training.data]

    def each(self) -> Sequence[RowsStage]:
        return [
            dataclasses.replace(
                self, name=f"{self.name}/parts/{domain}", training=training, parts={}
            )
            for domain, training in self.parts.items()
        ] or [self]

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        if first == "parts":
            domain, *others = rest
            return "domains", domain, self.KIND, *others
        return super()._recipe_key(first, *rest)


@dataclass(frozen=True, kw_only=True)
class MidtrainStage(AdaptStage):
    """Learns from texts, which have no chat template."""

    KIND = "midtrain"
    LABEL = "mid-training"
    FORM = TEXTS
    RELEVANCE = Relevance(ignored=frozenset({"chat_template"}))
    BYTES_PER_TOKEN = 4.5  # as OLMo-2's tokenizer cuts them


@dataclass(frozen=True, kw_only=True)
class SftStage(AdaptStage):
    """Learns from conversations."""

    KIND = "sft"
    LABEL = "SFT"
