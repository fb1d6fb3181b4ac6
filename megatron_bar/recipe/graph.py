"""The stages that a recipe asks for, and what each needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from megatron_bar.recipe.schema import Domain, Recipe, Route, Source, Training
from megatron_bar.runtime.layout import Layout

# What each stage of BAR trains by default; expert 1 is the branch's domain expert.
MIDTRAIN_GROUPS = ("expert.1", "router.1")
SFT_GROUPS = ("expert.1", "router.1", "embeddings", "head", "final_norm")
ROUTE_GROUPS = ("router.*",)
RLVR_GROUPS = (
    "expert.1", "router.1", "embeddings", "attention", "block_norms", "final_norm", "head",
)
PRETRAIN_GROUPS = ("*",)
# Folders of a run, and a task, that a domain's name would collide with.
TAKEN_NAMES = frozenset({
    "base", "anchor", "pretrained", "merged", "routed", "hf", "evaluate", "report", "logs",
    "general", "data", "before",
})
# A routed model that is evaluated without one of its experts; no domain's name begins so.
WITHOUT = "without-"
ROUTE_EPOCHS = 2.0  # as published, where the recipe says nothing


@dataclass(frozen=True)
class Stage:
    """One node. Its folder is runs/NAME/`name`; its checkpoint, if it makes one, is in there.

    `inputs` maps a role to the stage that plays it. `settings` are those parts of the recipe that
    matter to the stage: it is done again when they change.
    """

    name: str
    kind: str
    inputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    domain: str | None = None


def with_defaults(training: Training, trainable: tuple[str, ...]) -> Training:
    """`training` with the stage's usual groups where the recipe names none."""
    return dataclasses.replace(training, trainable=training.trainable or list(trainable))


def stage_graph(recipe: Recipe) -> list[Stage]:
    """All stages, each after those it needs."""
    stages = list(_starts(recipe))
    has_pretrained = any(stage.name == "pretrained" for stage in stages)
    ends: dict[str, str] = {}
    for name, domain in recipe.domains.items():
        if domain.checkpoint is not None:
            ends[name] = f"{name}/branch"
            stages.append(Stage(ends[name], "adopt", {"anchor": "anchor"},
                                {"checkpoint": domain.checkpoint}, domain=name))
            continue
        inputs = {"anchor": "anchor"} | ({"pretrained": "pretrained"} if has_pretrained else {})
        stages.append(Stage(f"{name}/branch", "branch", inputs, {"seed": recipe.seed},
                            domain=name))
        ends[name] = f"{name}/branch"
        for kind, groups in (
            ("midtrain", MIDTRAIN_GROUPS), ("sft", SFT_GROUPS), ("rlvr", RLVR_GROUPS)
        ):
            training = getattr(domain, kind)
            if training is not None:
                stages.append(_training_stage(
                    recipe, f"{name}/{kind}", kind, {"start": ends[name]},
                    with_defaults(training, groups), domain=name,
                ))
                ends[name] = f"{name}/{kind}"
    stages.append(Stage("merged", "merge", {"anchor": "anchor"} | ends))
    stages.append(_training_stage(recipe, "routed", "route", {"start": "merged"},
                                  route_training(recipe), **route_settings(recipe)))
    if recipe.export:
        stages.append(Stage("hf", "export", {"checkpoint": "routed"}))
    stages += _evaluations(recipe, ends)
    return stages


def route_training(recipe: Recipe) -> Training:
    """How the router trains."""
    training = with_defaults(recipe.route.training, ROUTE_GROUPS)
    if (training.steps, training.epochs, training.tokens) == (None, None, None):
        training = dataclasses.replace(training, epochs=ROUTE_EPOCHS)
    return training


def route_settings(recipe: Recipe) -> dict[str, Any]:
    """What else decides the routed model. Options at their default are left out."""
    route = recipe.route
    options = {"start": route.start, "active": route.active, "renormalize": route.renormalize,
               "load_balancing": route.load_balancing}
    usual = Route()
    sampled = {name: [dataclasses.asdict(source) for source in routing_data(domain)]
               for name, domain in recipe.domains.items() if routing_data(domain)}
    return {"fraction": route.fraction, "sampled": sampled} | {
        key: value for key, value in options.items() if value != getattr(usual, key)
    }


def routing_data(domain: Domain) -> list[Source]:
    """The sources that route samples for a domain."""
    return domain.routing or (domain.sft.data if domain.sft else [])


def _starts(recipe: Recipe) -> list[Stage]:
    if recipe.pretrain is not None:
        training = with_defaults(recipe.pretrain.training, PRETRAIN_GROUPS)
        base = _training_stage(recipe, "base", "pretrain", {}, training,
                               pretrain=dataclasses.asdict(recipe.pretrain))
        return [
            base,
            Stage("anchor", "import", {"base": "base"}, {"folder": "hf"}),
            Stage("pretrained", "import", {"base": "base"}, {"folder": "pretrained_hf"}),
        ]
    starts = [Stage("anchor", "import", {}, {"hf": recipe.anchor})]
    if recipe.pretrained is not None:
        starts.append(Stage("pretrained", "import", {}, {"hf": recipe.pretrained}))
    return starts


def _training_stage(
    recipe: Recipe,
    name: str,
    kind: str,
    inputs: dict[str, str],
    training: Training,
    domain: str | None = None,
    **more: Any,
) -> Stage:
    settings = {
        "training": dataclasses.asdict(training), "seed": recipe.seed,
        "chat_template": recipe.chat_template, **more,
    }
    return Stage(name, kind, inputs, settings, training.layout or recipe.layout, domain)


def _evaluations(recipe: Recipe, ends: dict[str, str]) -> list[Stage]:
    """One evaluation a model, so that they run beside each other, and the report of them all."""
    evaluate = recipe.evaluate
    tasks = {name: domain.tasks for name, domain in recipe.domains.items() if domain.tasks}
    if evaluate.general:
        tasks["general"] = evaluate.general
    without = {f"{WITHOUT}{name}": name for name in evaluate.opt_out}
    models = {"anchor": "anchor", **ends, "merged": "merged", "routed": "routed",
              **dict.fromkeys(without, "routed")}
    stages = []
    for name, stage in models.items():
        wanted = {name, "general"} if name in ends else set(tasks)
        opt_out = {"opt_out": [without[name]]} if name in without else {}
        settings = {
            "tasks": {task: [dataclasses.asdict(s) for s in sources]
                      for task, sources in tasks.items() if task in wanted},
            "max_new_tokens": evaluate.max_new_tokens,
            "batch_size": evaluate.batch_size,
            "chat_template": recipe.chat_template, "seed": recipe.seed, **opt_out,
        }
        stages.append(Stage(f"evaluate/{name}", "evaluate", {"checkpoint": stage}, settings))
    inputs = {f"evaluate/{name}": f"evaluate/{name}" for name in models}
    if recipe.export:
        inputs["hf"] = "hf"
    stages.append(Stage("report", "report", inputs))
    return stages
