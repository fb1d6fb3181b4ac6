"""`export`: the model that a recipe makes as a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.fields import TEMPLATE, key
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import read_done
from megatron_bar.stages.conversion import ConversionStage
from megatron_bar.stages.import_hf import ImportStage
from megatron_bar.stages.pretrain import PretrainStage
from megatron_bar.stages.training_stage import TrainingStage

if TYPE_CHECKING:
    from megatron_bar.checkpoints.model_card import Origin
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context

MODEL_FOLDER = "model"


@dataclass(frozen=True, kw_only=True)
class ExportStage(ConversionStage):
    """Its tokenizer has the chat template that the recipe names, by default the checkpoint's."""

    method: str = "bar"  # which the model card tells
    chat_template: str | None = key(None, contents=TEMPLATE)

    KIND = "export"
    LABEL = "export"

    def check(self, model: ModelConfig, faults: Faults) -> None:
        from megatron_bar.checkpoints.hf import architecture

        try:
            architecture(model)
        except BarError as error:
            faults.add(f"{error}; set export=false to stop at the routed checkpoint")

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.checkpoints.convert import export_hf
        from megatron_bar.data.chat_format import find_chat_format

        target, checkpoint = context.folder / MODEL_FOLDER, context.checkpoint("checkpoint")
        chat = find_chat_format(checkpoint, self.chat_template)
        model = export_hf(checkpoint, target, overwrite=True, origin=_origin(context), chat=chat)
        return {
            "summary": str(target),
            "experts": model.all_expert_names,
            "active": model.experts_per_token,
        }


def _origin(context: Context) -> Origin:
    """What the model card tells of the run, as far as its stages have left it."""
    from megatron_bar.checkpoints.model_card import Origin, Step
    from megatron_bar.data.sources import source_name

    bases, hub_bases, steps = {}, [], []
    for stage in context.graph.stages:
        done = read_done(context.run / stage.name)
        if done is None:
            continue
        if isinstance(stage, PretrainStage):
            bases["trained from scratch"] = stage.pretrain.model
        elif isinstance(stage, ImportStage) and stage.hf is not None:
            commit = done.get("commit")
            bases[stage.name] = done["source"] if commit else Path(done["source"]).name
            if commit:
                bases[stage.name] += f" at commit {commit}"
                hub_bases.append(done["source"].partition("@")[0])
        if isinstance(stage, TrainingStage):
            amount = (
                f"{done['tokens']:,} supervised tokens"
                if "tokens" in done
                else f"{done['steps']:,} rollouts"
            )
            names = dict.fromkeys(map(source_name, stage.sources()))
            steps.append(Step(stage.name, list(names), amount))
    method = context.graph.method
    return Origin(context.recipe.method, method.MADE, context.recipe.name, bases, hub_bases, steps)
