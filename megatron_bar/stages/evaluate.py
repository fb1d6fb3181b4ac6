"""`evaluate`: one model's answers to held-out items, scored, and how it routes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.deciding import KeyPath, Setting
from megatron_bar.recipe.fields import ITEMS, TEMPLATE, key
from megatron_bar.recipe.names import GENERAL
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Source
from megatron_bar.stages.stage import Reading, Stage

if TYPE_CHECKING:
    import torch

    from megatron_bar.costs.machine import Machine
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context
    from megatron_bar.stages.plan import StagePlan


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Asks the model of the input `checkpoint`; the items are in `tasks`, not in `asking`."""

    tasks: dict[str, list[Source]]
    asking: Evaluate
    seed: int
    chat_template: str | None = key(None, contents=TEMPLATE)

    KIND = "evaluate"
    LABEL = "evaluate"
    ON_GPU = True
    FORM = ITEMS

    def readings(self) -> Iterator[Reading]:
        for task, sources in self.tasks.items():
            for source in sources:
                yield Reading(self.name, source, self.FORM, task=task)

    def check(self, model: ModelConfig, faults: Faults) -> None:
        from megatron_bar.stages.training_stage import check_layout

        # Experts are spread as far as they can be, so the other sizes decide.
        with faults.of(self.name):
            check_layout(model, self.layout.fitted(model.num_experts))

    def check_sources(self, faults: Faults) -> None:
        from megatron_bar.verifiers.registry import check_verifier

        for task, sources in self.tasks.items():
            for source in sources:
                check_verifier(source, f"tasks of {task}", faults)
                if source.environment is not None:
                    faults.add(
                        "environment is for the prompts of rlvr; an evaluation asks each "
                        "item once, so leave it out here",
                        f"tasks of {task}",
                    )

    def plan(self, model: ModelConfig, machine: Machine, stored: torch.dtype) -> StagePlan:
        from megatron_bar.stages.plan import plan_evaluation

        return plan_evaluation(self, model, machine, stored)

    def fitted(self, context: Context) -> EvaluateStage:
        """Its layout as far as the model's experts can be spread over it."""
        from megatron_bar.models.config import ModelConfig

        model = ModelConfig.load(context.checkpoint("checkpoint"))
        return dataclasses.replace(self, layout=self.layout.fitted(model.num_experts))

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.data.chat_format import load_chat_format
        from megatron_bar.evaluation.model import evaluate

        checkpoint = context.checkpoint("checkpoint")
        scores = evaluate(
            checkpoint,
            self.tasks,
            self.asking,
            load_chat_format(checkpoint, self.chat_template),
            self.layout,
            self.seed,
            self.name.removeprefix("evaluate/"),
            context.folder,
        )
        return {"summary": ", ".join(f"{task} {score:.2f}" for task, score in scores.items())}

    @classmethod
    def deciding(cls, settings: Mapping[str, Any]) -> dict[KeyPath, Setting]:
        """Earlier versions had the keys of `asking` beside the others."""
        if "asking" not in settings:
            own = {field.name for field in dataclasses.fields(cls)}
            asking = {key: value for key, value in settings.items() if key not in own}
            settings = {**settings, "asking": asking}
        return super().deciding(settings)

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        if first == "asking":
            return self.KIND, *rest
        if first == "tasks":
            task, *others = rest
            if task == GENERAL:
                return self.KIND, task, *others
            return "domains", task, first, *others
        return super()._recipe_key(first, *rest)
