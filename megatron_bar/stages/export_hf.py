"""`export`: the model that a recipe makes as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.checkpoints.model_card import Origin, Step
from megatron_bar.data.chat_format import find_chat_format
from megatron_bar.data.sources import source_name
from megatron_bar.recipe.graph import Stage
from megatron_bar.recipe.methods import METHODS, stage_graph
from megatron_bar.runtime.files import folder_digest
from megatron_bar.stages.context import Context, parts_of, read_done, sources, training_of

MODEL_FOLDER = "model"


def run(context: Context) -> dict[str, Any]:
    """Its tokenizer has the chat template that the recipe names, by default the checkpoint's."""
    target, checkpoint = context.folder / MODEL_FOLDER, context.checkpoint("checkpoint")
    chat = find_chat_format(checkpoint, context.stage.settings.get("chat_template"))
    model = export_hf(checkpoint, target, overwrite=True, origin=_origin(context), chat=chat)
    return {
        "summary": str(target), "experts": model.all_expert_names,
        "active": model.experts_per_token, "digest": folder_digest(target),
    }


def _origin(context: Context) -> Origin:
    """What the model card tells of the run, as far as its stages have left it."""
    method = context.stage.settings.get("method", "bar")
    bases, hub_bases, steps = {}, [], []
    for stage in stage_graph(context.recipe):
        done = read_done(context.run / stage.name)
        if done is None:
            continue
        if stage.kind == "pretrain":
            bases["trained from scratch"] = stage.settings["pretrain"]["model"]
        elif stage.kind == "import" and "hf" in stage.settings:
            commit = done.get("commit")
            bases[stage.name] = done["source"] if commit else Path(done["source"]).name
            if commit:
                bases[stage.name] += f" at commit {commit}"
                hub_bases.append(done["source"].partition("@")[0])
        if "training" in stage.settings:
            amount = (f"{done['tokens']:,} supervised tokens" if "tokens" in done
                      else f"{done['steps']:,} rollouts")
            steps.append(Step(stage.name, _data(stage), amount))
    return Origin(method, METHODS[method].MADE, context.recipe.name, bases, hub_bases, steps)


def _data(stage: Stage) -> list[str]:
    """The names of the sources that a stage trained on."""
    if stage.kind == "route":
        named = [s for entries in stage.settings["sampled"].values() for s in sources(entries)]
    else:
        named = [s for part in parts_of(stage) for s in training_of(part).data]
    return list(dict.fromkeys(source_name(source) for source in named))
