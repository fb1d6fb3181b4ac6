"""The stages of a recipe, and what each needs: the parts that every method builds its graph of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megatron_bar.recipe.names import ALL, EXPORTED, GENERAL, WITHOUT, model_after
from megatron_bar.recipe.schema import Domain, Recipe
from megatron_bar.recipe.training import Rlvr, RouteTraining, Source, Training
from megatron_bar.stages.branch import AdoptStage, BranchStage
from megatron_bar.stages.dpo import DpoStage
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.export_hf import ExportStage
from megatron_bar.stages.import_hf import ImportStage
from megatron_bar.stages.pretrain import HF_FOLDER, PRETRAINED_HF_FOLDER, PretrainStage
from megatron_bar.stages.report import ReportStage
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.route import ROUTE_GROUPS, RouteStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import MidtrainStage, SftStage
from megatron_bar.stages.training_stage import EVERYTHING, TrainingStage, with_groups

ROUTE_EPOCHS = 2.0  # as published, where the recipe says nothing
# A domain's own stages, in order; their kinds are the keys of `recipe.schema.Domain`.
ADAPTING: tuple[type[TrainingStage], ...] = (MidtrainStage, SftStage, DpoStage, RlvrStage)
# What each of them trains. A method leaves out the kinds that it doesn't have.
Groups = Mapping[type[TrainingStage], Sequence[str]]
DENSE_GROUPS: Groups = dict.fromkeys(ADAPTING, EVERYTHING)


def training_of(domain: Domain, kind: type[TrainingStage]) -> Training | None:
    """The recipe's training of a domain's stage, if it has one of this kind."""
    return getattr(domain, kind.KIND)


class Graph:
    """The stages of `recipe`, each after those it needs; begins with the models it starts from.

    Methods add stages and get the name of the last one back.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages = _starts(recipe)

    def add(self, stage: Stage) -> str:
        """Put a stage after those it needs; returns its name."""
        self.stages.append(stage)
        return stage.name

    def branch(self, domain: str) -> str:
        """The anchor with a trainable expert beside its FFN, new or of a branch trained before."""
        name, checkpoint = f"{domain}/branch", self.recipe.domains[domain].checkpoint
        if checkpoint is not None:
            return self.add(
                AdoptStage(name, {"anchor": "anchor"}, domain=domain, checkpoint=checkpoint)
            )
        starts = [stage.name for stage in self.stages if isinstance(stage, ImportStage)]
        return self.add(
            BranchStage(
                name, {start: start for start in starts}, domain=domain, seed=self.recipe.seed
            )
        )

    def adapt(self, domain: str, start: str, groups: Groups) -> str:
        """Add the domain's own stages that are keys of `groups`, which says what they train."""
        for kind, trainable in groups.items():
            training = training_of(self.recipe.domains[domain], kind)
            if training is not None:
                start = self.add(
                    self._training(
                        kind,
                        f"{domain}/{kind.KIND}",
                        start,
                        with_groups(training, trainable),
                        domain=domain,
                    )
                )
        return start

    def adapt_all(self, start: str, groups: Groups) -> str:
        """The same stages, of all domains at once.

        One stage reads what the domains' own would read, row for row, in a common order; RLVR asks
        the prompts of all domains for as many steps as theirs together. The rest of its training
        is the first domain's, which the others' is to agree with (`methods.checks.one_training`).
        """
        for kind, trainable in groups.items():
            parts = {
                name: training
                for name, domain in self.recipe.domains.items()
                if (training := training_of(domain, kind)) is not None
            }
            if not parts:
                continue
            training = with_groups(_together(list(parts.values())), trainable)
            more: dict[str, Any] = {} if kind is RlvrStage else {"parts": parts}
            start = self.add(self._training(kind, f"{ALL}/{kind.KIND}", start, training, **more))
        return start

    def combine(
        self, kind: Callable[..., Stage], models: Mapping[str, str], **settings: Any
    ) -> str:
        """One model of the anchor and those of `models`, by domain."""
        return self.add(
            kind(
                "merged",
                {"anchor": "anchor", **models},
                **dataclasses.asdict(self.recipe.merge),
                **settings,
            )
        )

    def route(self, start: str) -> str:
        """The router, trained on a sample of all domains' SFT data."""
        route = self.recipe.route
        return self.add(
            self._training(
                RouteStage,
                "routed",
                start,
                route_training(self.recipe),
                fraction=route.fraction,
                start=route.start,
                experts_per_token=route.experts_per_token,
                renormalize=route.renormalize,
                load_balancing_loss=route.load_balancing_loss,
                sampled={
                    name: routing_data(domain)
                    for name, domain in self.recipe.domains.items()
                    if routing_data(domain)
                },
            )
        )

    def finish(self, branches: Mapping[str, str], wholes: Mapping[str, str]) -> list[Stage]:
        """Export the last of `wholes`, evaluate all and report; returns the stages.

        `branches` are models of one domain each, by domain, which answer its questions and general
        ones; `wholes` are models that answer all, as the anchor does.
        """
        recipe = self.recipe
        final = list(wholes.values())[-1]
        evaluated = [
            _evaluation(recipe, "anchor", "anchor"),
            *self._evaluations_between({*branches.values(), *wholes.values()}),
            *(
                _evaluation(recipe, name, stage, {name, GENERAL})
                for name, stage in branches.items()
            ),
            *(_evaluation(recipe, name, stage) for name, stage in wholes.items()),
            *(
                _evaluation(recipe, f"{WITHOUT}{expert}", final, without=expert)
                for expert in recipe.evaluate.opt_out
            ),
        ]
        inputs = {stage.name: stage.name for stage in evaluated}
        if recipe.export:
            inputs[EXPORTED] = self.add(
                ExportStage(
                    EXPORTED,
                    {"checkpoint": final},
                    method=recipe.method,
                    chat_template=recipe.chat_template,
                )
            )
        return [*self.stages, *evaluated, ReportStage("report", inputs)]

    def _evaluations_between(self, ends: set[str]) -> Iterator[Stage]:
        """Of models that a domain's stages leave for the next one, where the recipe asks for it."""
        for stage in self.stages if self.recipe.evaluate.each_stage else ():
            if isinstance(stage, ADAPTING) and stage.name not in ends:
                wanted = None if stage.domain is None else {stage.domain, GENERAL}
                yield _evaluation(self.recipe, model_after(stage.name), stage.name, wanted)

    def _training(
        self,
        kind: type[TrainingStage],
        name: str,
        start: str,
        training: Training,
        /,
        domain: str | None = None,
        **settings: Any,
    ) -> TrainingStage:
        recipe = self.recipe
        return kind(
            name,
            {"start": start},
            training.layout or recipe.layout,
            domain,
            training=training,
            seed=recipe.seed,
            chat_template=recipe.chat_template,
            **settings,
        )


def route_training(recipe: Recipe) -> RouteTraining:
    """The router's training. By default in the recipe's layout, as far as the experts divide so."""
    training = with_groups(recipe.route.training, ROUTE_GROUPS)
    if training.layout is None:
        layout = recipe.layout.spread(len(recipe.domains) + 1)
        training = dataclasses.replace(training, layout=layout)
    if (training.steps, training.epochs, training.tokens) == (None, None, None):
        training = dataclasses.replace(training, epochs=ROUTE_EPOCHS)
    return training


def routing_data(domain: Domain) -> list[Source]:
    """The sources that route samples for a domain."""
    return domain.routing or (domain.sft.data if domain.sft else [])


def _starts(recipe: Recipe) -> list[Stage]:
    if (pretrain := recipe.pretrain) is not None:
        training = with_groups(pretrain.training, EVERYTHING)
        base = {"base": "base"}
        return [
            PretrainStage(
                "base",
                {},
                training.layout or recipe.layout,
                training=training,
                seed=recipe.seed,
                chat_template=recipe.chat_template,
                pretrain=pretrain,
            ),
            ImportStage("anchor", base, folder=HF_FOLDER),
            ImportStage("pretrained", base, folder=PRETRAINED_HF_FOLDER),
        ]
    models = {"anchor": recipe.anchor, "pretrained": recipe.pretrained}
    return [ImportStage(name, hf=hf) for name, hf in models.items() if hf is not None]


def _together(trainings: Sequence[Training]) -> Training:
    """One training in place of several that differ in data and length alone."""
    first = trainings[0]
    validation = [source for training in trainings for source in training.validation]
    once = [source for i, source in enumerate(validation) if source not in validation[:i]]
    if isinstance(first, Rlvr):
        return dataclasses.replace(
            first,
            data=[source for training in trainings for source in training.data],
            steps=sum(training.steps or 0 for training in trainings),
            validation=once,
        )
    # Once over the rows of all.
    return dataclasses.replace(first, data=[], steps=None, tokens=None, epochs=1.0, validation=once)


def recipe_tasks(recipe: Recipe) -> dict[str, list[Source]]:
    """The held-out items of each domain that has some, and of what belongs to no domain."""
    tasks = {name: domain.tasks for name, domain in recipe.domains.items() if domain.tasks}
    return tasks | ({GENERAL: recipe.evaluate.general} if recipe.evaluate.general else {})


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
    evaluate, tasks = recipe.evaluate, recipe_tasks(recipe)
    return EvaluateStage(
        f"evaluate/{name}",
        {"checkpoint": stage},
        evaluate.layout or recipe.layout,
        tasks={
            task: sources for task, sources in tasks.items() if wanted is None or task in wanted
        },
        asking=dataclasses.replace(
            evaluate,
            general=[],
            layout=None,
            opt_out=[] if without is None else [without],
            each_stage=False,
        ),
        seed=recipe.seed,
        chat_template=recipe.chat_template,
    )
