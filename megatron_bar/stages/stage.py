"""A stage: one node of a run's graph, of a class that knows all there is to know of it.

A kind of stage is one class in one file here, with a line in `stages/registry.py`. Its fields are
its settings. Commands such as `status` read the graph and have to be quick, so modules that load
torch are imported where a stage computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_bar.recipe.deciding import KeyPath, Relevance, Setting, deciding, rounding
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from megatron_bar.costs.machine import Machine
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context
    from megatron_bar.stages.plan import StagePlan


@dataclass(frozen=True)
class Reading:
    """A stage reads a source in one of the forms of `recipe.fields`."""

    stage: str
    source: Source
    form: str
    length: int | None = None  # of a row of chats, or the longest prompt that is asked
    task: str | None = None  # whose items the source holds

    @property
    def where(self) -> str:
        """The stage, or the tasks that every evaluation asks."""
        return self.stage if self.task is None else f"tasks of {self.task}"


@dataclass(frozen=True)
class Stage:
    """One node. Its folder is runs/NAME/`name`; its checkpoint, if it makes one, is in there.

    `inputs` maps a role to the stage that plays it. All fields but these four are settings, and
    decide what the stage makes unless they or the class say otherwise (`recipe.fields`,
    `RELEVANCE`).
    """

    name: str
    inputs: dict[str, str] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    domain: str | None = None

    KIND: ClassVar[str]
    LABEL: ClassVar[str]  # what reports call it
    ON_GPU: ClassVar[bool] = False  # whether its ranks need one each
    FORM: ClassVar[str | None] = None  # that it reads its sources in, if it is one
    RELEVANCE: ClassVar[Relevance] = Relevance()  # but for the form

    # What it reads, and what it is.

    def readings(self) -> Iterator[Reading]:
        """Readings of the sources that it reads."""
        return iter(())

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        """The model that it makes or, if it makes none, reads.

        `inputs` are those of the stages that it reads; `dense` is what the recipe starts from.
        """
        return inputs[0]

    # What can be known to be wrong before it runs. All are reported, none is raised.

    def check(self, model: ModelConfig, faults: Faults) -> None:
        """Add what is wrong with its settings for `model`, that of the method `model`."""

    def check_sources(self, faults: Faults) -> None:
        """Add what is wrong with what its sources say of themselves: mixtures, verifiers."""

    def check_outside(self, run: Path, faults: Faults) -> None:
        """Add what is wrong with the folders of models that it reads, for a run in folder `run`."""

    def check_installed(self, faults: Faults) -> None:
        """Add what this Python lacks to run it."""

    # What it needs.

    @property
    def server_nodes(self) -> int:
        """Nodes that a job of it has beside those of its ranks, for servers."""
        return 0

    def plan(self, model: ModelConfig, machine: Machine, stored: torch.dtype) -> StagePlan:
        """Its cost; `stored` is the type of all checkpoints of a run (`number_types`).

        Raises BarError for a layout that can't hold its model and for unknown parameter groups.
        """
        raise NotImplementedError

    # What it does, as each of its ranks, in this order.

    def fitted(self, context: Context) -> Stage:
        """The stage with the layout that suits what it reads, which is there now."""
        return self

    def prepare(self) -> None:
        """Do what has to be done before the groups of processes exist."""

    def run(self, context: Context) -> dict[str, Any]:
        """Do the work; returns facts for stage.json, `summary` among them, from the main rank.

        Outputs go into `context.folder`, whole under their names or not at all.
        """
        raise NotImplementedError

    # What it was made with.

    def settings(self) -> dict[str, Any]:
        """Its settings as a JSON value."""
        of_all = {f.name for f in dataclasses.fields(Stage)}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in of_all}

    @classmethod
    def deciding(cls, settings: Mapping[str, Any]) -> dict[KeyPath, Setting]:
        """The `settings`, of this version or an earlier one, that decide what is made."""
        return deciding(cls, settings, dataclasses.replace(cls.RELEVANCE, form=cls.FORM))

    def rounding(self) -> dict[str, Any]:
        """The settings that change its rounding and nothing else, by their names in the recipe."""
        relevance = dataclasses.replace(self.RELEVANCE, form=self.FORM)
        return {
            self.recipe_key(key_path): setting.value
            for key_path, setting in rounding(type(self), self.settings(), relevance).items()
        }

    def recipe_key(self, key_path: KeyPath) -> str:
        """The recipe's name of the setting at `key_path`."""
        first, *rest = key_path
        return ".".join(map(str, self._recipe_key(str(first), *rest)))

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        return first, *rest

    @property
    def recipe_section(self) -> str:
        """The recipe's key that says how it trains, or how models are evaluated."""
        return self.KIND
