"""`branch` and `adopt`: a domain's model of two experts, made of the anchor or brought along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.fields import CHECKPOINT, key
from megatron_bar.stages.conversion import ConversionStage

if TYPE_CHECKING:
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context


@dataclass(frozen=True, kw_only=True)
class _DomainStage(ConversionStage):
    """A model of the anchor's FFN and a domain's."""

    domain: str

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense.with_experts(2)


@dataclass(frozen=True, kw_only=True)
class BranchStage(_DomainStage):
    """The anchor's FFN and, to be trained, the pretrained model's beside it."""

    seed: int

    KIND = "branch"
    LABEL = "branch"

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.checkpoints.branch import branch
        from megatron_bar.training.groups import anchor_digest

        target = context.folder / "checkpoint"
        branch(
            context.checkpoint("anchor"),
            target,
            pretrained=context.checkpoint("pretrained") if "pretrained" in self.inputs else None,
            expert_name=self.domain,
            seed=self.seed,
            overwrite=True,
        )
        return {"anchor_digest": anchor_digest(target)}


@dataclass(frozen=True, kw_only=True)
class AdoptStage(_DomainStage):
    """A branch that was trained elsewhere, in place of a domain's stages."""

    checkpoint: str = key(None, contents=CHECKPOINT)

    KIND = "adopt"
    LABEL = "adopt"

    def check_outside(self, run: Path, faults: Faults) -> None:
        from megatron_bar.checkpoints.adopt import check_branch
        from megatron_bar.models.config import ModelConfig

        anchor, checkpoint = run / "anchor" / "checkpoint", Path(self.checkpoint)
        where = f"domains.{self.domain}"
        if not checkpoint.is_dir():
            faults.add(f"checkpoint {checkpoint} is not a folder", where, absent=True)
            return
        with faults.of(where):
            if anchor.is_dir():
                check_branch(checkpoint, anchor)
            else:
                ModelConfig.load(checkpoint)

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.checkpoints.adopt import adopt
        from megatron_bar.training.groups import anchor_digest

        source, target = Path(self.checkpoint), context.folder / "checkpoint"
        adopt(source, target, context.checkpoint("anchor"), self.domain)
        return {
            "summary": f"taken from {source}",
            "source": str(source),
            "anchor_digest": anchor_digest(target),
        }

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        return "domains", self.domain, first, *rest
