"""The stages of a recipe, and what each needs: the parts that every method builds its graph of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_bar.recipe.schema import (
    Domain,
    Evaluate,
    Recipe,
    Rlvr,
    Route,
    Source,
    Training,
)
from megatron_bar.runtime.layout import Layout

TRAINING_KINDS = ("pretrain", "midtrain", "sft", "rlvr", "route")
# What each stage of BAR trains by default; expert 1 is the branch's domain expert.
MIDTRAIN_GROUPS = ("expert.1", "router.1")
SFT_GROUPS = ("expert.1", "router.1", "embeddings", "head", "final_norm")
ROUTE_GROUPS = ("router.*",)
RLVR_GROUPS = (
    "expert.1", "router.1", "embeddings", "attention", "block_norms", "final_norm", "head",
)
EVERYTHING = ("*",)
DENSE_GROUPS = {"midtrain": EVERYTHING, "sft": EVERYTHING, "rlvr": EVERYTHING}
ALL = "all"  # the folder of stages that train on all domains at once, and the model they make
# Folders of a run, a task, or a word of merge.shared, that a domain's name would collide with.
TAKEN_NAMES = frozenset({
    "base", "anchor", "pretrained", "merged", "routed", "hf", "evaluate", "report", "logs",
    "general", "data", ALL, "published", "branches", "sections", "suites", "before", "slurm",
    "replaced", "rehearsal",
})
# A routed model that is evaluated without one of its experts.
WITHOUT = "without-"
# No domain's name begins so: it would pass for such a model, or its logs for an evaluation's.
TAKEN_STARTS = (WITHOUT, "evaluate-")
ROUTE_EPOCHS = 2.0  # as published, where the recipe says nothing


@dataclass(frozen=True)
class Stage:
    """One node. Its folder is runs/NAME/`name`; its checkpoint, if it makes one, is in there.

    `inputs` maps a role to the stage that plays it. `settings` are those parts of the recipe that
    the stage is given; `stages.made_of` says which of them decide what it makes.
    """

    name: str
    kind: str
    inputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    domain: str | None = None


def stage_key(stage: Stage) -> str:
    """The recipe's key that says how a stage trains, or how models are evaluated."""
    if stage.kind == "pretrain":
        return "pretrain.training"
    if stage.kind == "route":
        return "route.training"
    if stage.kind == "evaluate":
        return "evaluate"
    return f"domains.{stage.domain or '*'}.{stage.kind}"


def with_defaults(training: Training, trainable: Sequence[str]) -> Training:
    """`training` with the stage's usual groups where the recipe names none."""
    return dataclasses.replace(training, trainable=training.trainable or list(trainable))


class Graph:
    """The stages of `recipe`, each after those it needs; begins with the models it starts from.

    Methods add stages and get the name of the last one back.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages = _starts(recipe)

    def branch(self, domain: str) -> str:
        """The anchor with a trainable expert beside its FFN, new or of a branch trained before."""
        checkpoint = self.recipe.domains[domain].checkpoint
        if checkpoint is not None:
            return self._add(Stage(f"{domain}/branch", "adopt", {"anchor": "anchor"},
                                   {"checkpoint": checkpoint}, domain=domain))
        pretrained = any(stage.name == "pretrained" for stage in self.stages)
        inputs = {"anchor": "anchor"} | ({"pretrained": "pretrained"} if pretrained else {})
        return self._add(Stage(f"{domain}/branch", "branch", inputs, {"seed": self.recipe.seed},
                               domain=domain))

    def adapt(self, domain: str, start: str, groups: Mapping[str, Sequence[str]]) -> str:
        """Those of a domain's own stages that are keys of `groups`, which says what they train."""
        for kind, trainable in groups.items():
            training = getattr(self.recipe.domains[domain], kind)
            if training is not None:
                start = self._train(f"{domain}/{kind}", kind, start,
                                    with_defaults(training, trainable), domain)
        return start

    def adapt_all(self, start: str, groups: Mapping[str, Sequence[str]]) -> str:
        """The same stages, of all domains at once.

        One stage reads what the domains' own would read, row for row, in a common order; RLVR asks
        the prompts of all domains for as many steps as theirs together. The rest of its training
        is the first domain's, which the others' is to agree with (`methods.checks.one_training`).
        """
        for kind, trainable in groups.items():
            parts = {name: getattr(domain, kind) for name, domain in self.recipe.domains.items()
                     if getattr(domain, kind) is not None}
            if not parts:
                continue
            name = f"{ALL}/{kind}"
            training = with_defaults(_together(list(parts.values())), trainable)
            if isinstance(training, Rlvr):
                start = self._train(name, kind, start, training)
            else:
                start = self._train(name, kind, start, training, parts={
                    domain: dataclasses.asdict(part) for domain, part in parts.items()
                })
        return start

    def combine(self, kind: str, models: Mapping[str, str], **settings: Any) -> str:
        """One model of the anchor and those of `models`, by domain: merge, average or stack."""
        shared = self.recipe.merge.shared
        told = {} if shared == "published" else {"shared": shared}
        return self._add(Stage("merged", kind, {"anchor": "anchor", **models}, told | settings))

    def route(self, start: str) -> str:
        """The router, trained on a sample of all domains' SFT data."""
        return self._train("routed", "route", start, route_training(self.recipe),
                           **route_settings(self.recipe))

    def finish(self, branches: Mapping[str, str], wholes: Mapping[str, str]) -> list[Stage]:
        """Export the last of `wholes`, evaluate all and report; returns the stages.

        `branches` are models of one domain each, by domain, which answer its questions and general
        ones; `wholes` are models that answer all, as the anchor does.
        """
        recipe = self.recipe
        final = list(wholes.values())[-1]
        evaluated = [
            _evaluation(recipe, "anchor", "anchor"),
            *(_evaluation(recipe, name, stage, {name, "general"})
              for name, stage in branches.items()),
            *(_evaluation(recipe, name, stage) for name, stage in wholes.items()),
            *(_evaluation(recipe, f"{WITHOUT}{expert}", final, without=expert)
              for expert in recipe.evaluate.opt_out),
        ]
        inputs = {stage.name: stage.name for stage in evaluated}
        if recipe.export:
            told = {} if recipe.method == "bar" else {"method": recipe.method}
            if recipe.chat_template is not None:
                told["chat_template"] = recipe.chat_template
            inputs["hf"] = self._add(Stage("hf", "export", {"checkpoint": final}, told))
        return [*self.stages, *evaluated, Stage("report", "report", inputs)]

    def _train(
        self,
        name: str,
        kind: str,
        start: str,
        training: Training,
        domain: str | None = None,
        /,
        **more: Any,
    ) -> str:
        return self._add(
            _training_stage(self.recipe, name, kind, {"start": start}, training, domain, **more)
        )

    def _add(self, stage: Stage) -> str:
        self.stages.append(stage)
        return stage.name


def route_training(recipe: Recipe) -> Training:
    """How the router trains. By default in the recipe's layout, as far as the experts divide so."""
    training = with_defaults(recipe.route.training, ROUTE_GROUPS)
    if training.layout is None:
        layout = recipe.layout.spread(len(recipe.domains) + 1)
        training = dataclasses.replace(training, layout=layout)
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
        training = with_defaults(recipe.pretrain.training, EVERYTHING)
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
    /,
    **more: Any,
) -> Stage:
    settings = {
        "training": dataclasses.asdict(training), "seed": recipe.seed,
        "chat_template": recipe.chat_template, **more,
    }
    return Stage(name, kind, inputs, settings, training.layout or recipe.layout, domain)


def _together(trainings: Sequence[Training]) -> Training:
    """One training in place of several that differ in data and length alone."""
    first = trainings[0]
    validation = [source for training in trainings for source in training.validation]
    once = [source for i, source in enumerate(validation) if source not in validation[:i]]
    if isinstance(first, Rlvr):
        return dataclasses.replace(
            first, data=[source for training in trainings for source in training.data],
            steps=sum(training.steps for training in trainings), validation=once,
        )
    # Once over the rows of all.
    return dataclasses.replace(
        first, data=[], steps=None, tokens=None, epochs=1.0, validation=once
    )


def recipe_tasks(recipe: Recipe) -> dict[str, list[Source]]:
    """The held-out items of each domain that has some, and of what belongs to no domain."""
    tasks = {name: domain.tasks for name, domain in recipe.domains.items() if domain.tasks}
    return tasks | ({"general": recipe.evaluate.general} if recipe.evaluate.general else {})


def _evaluation(
    recipe: Recipe,
    name: str,
    stage: str,
    wanted: set[str] | None = None,
    without: str | None = None,
) -> Stage:
    """One evaluation a model, so that they run beside each other; by default of all tasks.

    `without` names an expert to leave out of the model.
    """
    evaluate = recipe.evaluate
    settings = {
        "tasks": {task: [dataclasses.asdict(s) for s in sources]
                  for task, sources in recipe_tasks(recipe).items()
                  if wanted is None or task in wanted},
        "max_new_tokens": evaluate.max_new_tokens,
        "batch_size": evaluate.batch_size,
        "chat_template": recipe.chat_template, "seed": recipe.seed,
        # At their defaults they don't make a stage stale that was done before they existed.
        **{key: getattr(evaluate, key) for key in ("temperature", "samples", "dtype")
           if getattr(evaluate, key) != getattr(Evaluate, key)},
        **({"opt_out": [without]} if without is not None else {}),
    }
    return Stage(f"evaluate/{name}", "evaluate", {"checkpoint": stage}, settings,
                 evaluate.layout or recipe.layout)
