"""`merge`, `average` and `stack`: the anchor's and the domains' models become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.names import ANCHOR, MERGE_RULES
from megatron_bar.recipe.schema import Merge
from megatron_bar.stages.conversion import ConversionStage

if TYPE_CHECKING:
    import torch

    from megatron_bar.checkpoints.merge import Merged
    from megatron_bar.checkpoints.merging import Rule
    from megatron_bar.costs.machine import Machine
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.stages.context import Context
    from megatron_bar.stages.plan import StagePlan

_MEANS = ("published", "branches")


@dataclass(frozen=True, kw_only=True)
class _CombiningStage(ConversionStage):
    """One model of the inputs, which are the anchor and the domains' models by name.

    Its fields are those of `recipe.schema.Merge`.
    """

    shared: str = "published"
    scale: float = 1.0
    density: float = 0.2
    t: float = 0.5

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense.with_experts(len(self.inputs))

    def plan(self, model: ModelConfig, machine: Machine, stored: torch.dtype) -> StagePlan:
        from megatron_bar.stages.plan import plan_combining

        # A rule's result is held against the models once more.
        passes = 1 if (rule := self._rule(seed=0)) is None else rule.PASSES + 1
        return plan_combining(self, model, machine, stored, passes)

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.training.groups import anchor_digest

        target = context.folder / "checkpoint"
        models = {role: context.checkpoint(role) for role in self.inputs if role != ANCHOR}
        rule = self._rule(context.recipe.seed)
        merged = self._combined(models, target, context.checkpoint(ANCHOR), rule)
        experts = merged.model.all_expert_names
        summary = f"{len(experts)} experts" if experts else "one dense model"
        shared = [d for d in merged.by_tensor if d.group != "router.0"]
        if shared:
            farthest = max(shared, key=lambda d: d.largest)
            what = "shared parameters" if experts else "models"
            where = "their mean" if rule is None else f"what {self.shared} makes of them"
            summary += (
                f"; {what} lie at most {farthest.largest:.1%} from {where} ({farthest.tensor})"
            )
        anchor = {"anchor_digest": anchor_digest(target)} if experts else {}
        return {
            "summary": summary,
            "experts": experts,
            **anchor,
            "deviations": [dataclasses.asdict(d) for d in shared],
        }

    def _combined(
        self, models: dict[str, Path], target: Path, anchor: Path, rule: Rule | None
    ) -> Merged:
        raise NotImplementedError

    def _rule(self, seed: int) -> Rule | None:
        """What combines shared parameters, where that is no mean and no single model."""
        from megatron_bar.checkpoints.merging import rule_named

        if self.shared not in MERGE_RULES:
            return None
        return rule_named(self.shared, self.scale, self.density, self.t, seed)

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        is_of_merge = first in {field.name for field in dataclasses.fields(Merge)}
        return ("merge", first) if is_of_merge else super()._recipe_key(first, *rest)


@dataclass(frozen=True, kw_only=True)
class MergeStage(_CombiningStage):
    """Branches: shared parameters averaged or combined by a rule, experts and rows side by side."""

    KIND = "merge"
    LABEL = "merge"

    def _combined(
        self, models: dict[str, Path], target: Path, anchor: Path, rule: Rule | None
    ) -> Merged:
        from megatron_bar.checkpoints.merge import merge

        average = self.shared if self.shared in _MEANS else "published"
        of_one = rule is None and self.shared not in _MEANS
        return merge(
            list(models.values()),
            target,
            anchor,
            average=average,
            weights=[f"*={self.shared}:1"] if of_one else (),
            rule=rule,
            overwrite=True,
        )


@dataclass(frozen=True, kw_only=True)
class AverageStage(_CombiningStage):
    """Dense models: every parameter averaged."""

    KIND = "average"
    LABEL = "average"

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense

    def _combined(
        self, models: dict[str, Path], target: Path, anchor: Path, rule: Rule | None
    ) -> Merged:
        from megatron_bar.checkpoints import dense

        with_anchor = None if self.shared == "branches" else anchor
        return dense.average(models, target, with_anchor, rule, overwrite=True)


@dataclass(frozen=True, kw_only=True)
class StackStage(_CombiningStage):
    """Dense models: FFNs side by side, the rest averaged or of one."""

    seed: int

    KIND = "stack"
    LABEL = "stack"

    def _combined(
        self, models: dict[str, Path], target: Path, anchor: Path, rule: Rule | None
    ) -> Merged:
        from megatron_bar.checkpoints import dense

        shared = "published" if rule is not None else self.shared
        return dense.stack(anchor, models, target, shared, self.seed, rule, overwrite=True)
