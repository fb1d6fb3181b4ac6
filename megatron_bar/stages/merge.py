"""`merge`, `average` and `stack`: the anchor's and the domains' models become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.names import ANCHOR
from megatron_bar.stages.conversion import ConversionStage

if TYPE_CHECKING:
    from megatron_bar.checkpoints.merge import Merged
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.stages.context import Context

_MEANS = ("published", "branches")


@dataclass(frozen=True, kw_only=True)
class _CombiningStage(ConversionStage):
    """One model of the inputs, which are the anchor and the domains' models by name."""

    shared: str = "published"  # as `recipe.schema.Merge` has it

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense.with_experts(len(self.inputs))

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.training.groups import anchor_digest

        target = context.folder / "checkpoint"
        models = {role: context.checkpoint(role) for role in self.inputs if role != ANCHOR}
        merged = self._combined(models, target, context.checkpoint(ANCHOR))
        experts = merged.model.all_expert_names
        summary = f"{len(experts)} experts" if experts else "one dense model"
        shared = [d for d in merged.by_tensor if d.group != "router.0"]
        if shared:
            farthest = max(shared, key=lambda d: d.largest)
            what = "shared parameters" if experts else "models"
            summary += (f"; {what} lie at most {farthest.largest:.1%} from their mean "
                        f"({farthest.tensor})")
        anchor = {"anchor_digest": anchor_digest(target)} if experts else {}
        return {
            "summary": summary, "experts": experts, **anchor,
            "deviations": [dataclasses.asdict(d) for d in shared],
        }

    def _combined(self, models: dict[str, Path], target: Path, anchor: Path) -> Merged:
        raise NotImplementedError

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        return ("merge", first) if first == "shared" else super()._recipe_key(first, *rest)


@dataclass(frozen=True, kw_only=True)
class MergeStage(_CombiningStage):
    """Branches: shared parameters averaged, experts and their router rows side by side."""

    KIND = "merge"
    LABEL = "merge"

    def _combined(self, models: dict[str, Path], target: Path, anchor: Path) -> Merged:
        from megatron_bar.checkpoints.merge import merge

        mean = self.shared in _MEANS
        return merge(
            list(models.values()), target, anchor, average=self.shared if mean else "published",
            weights=() if mean else [f"*={self.shared}:1"], overwrite=True,
        )


@dataclass(frozen=True, kw_only=True)
class AverageStage(_CombiningStage):
    """Dense models: every parameter averaged."""

    KIND = "average"
    LABEL = "average"

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense

    def _combined(self, models: dict[str, Path], target: Path, anchor: Path) -> Merged:
        from megatron_bar.checkpoints import dense

        with_anchor = anchor if self.shared == "published" else None
        return dense.average(models, target, with_anchor, overwrite=True)


@dataclass(frozen=True, kw_only=True)
class StackStage(_CombiningStage):
    """Dense models: FFNs side by side, the rest averaged or of one."""

    seed: int

    KIND = "stack"
    LABEL = "stack"

    def _combined(self, models: dict[str, Path], target: Path, anchor: Path) -> Merged:
        from megatron_bar.checkpoints import dense

        return dense.stack(anchor, models, target, self.shared, self.seed, overwrite=True)
