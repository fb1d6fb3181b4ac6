"""A run's stages as the graph they are: starts, a lane for each domain, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DONE = "done"  # what stages are, unless they say another state
RUNNING = "running"


@dataclass(frozen=True)
class Step:
    """One stage, or several of a kind that need no picture each."""

    name: str
    what: str
    seconds: float
    share: float  # of the longest step's time
    caption: str = ""
    column: int = 1  # of a lane: the same kinds of stages stand below each other
    state: str = DONE


@dataclass(frozen=True)
class Flow:
    """Steps before the domains part, each domain's own, and those after they meet."""

    starts: list[Step] = field(default_factory=list)
    lanes: dict[str, list[Step]] = field(default_factory=dict)
    ends: list[Step] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return max((step.column for lane in self.lanes.values() for step in lane), default=1)

    def __bool__(self) -> bool:
        return bool(self.starts or self.lanes or self.ends)


def flow_of(stages: Sequence[dict[str, Any]], labels: Mapping[str, str]) -> Flow:
    """The graph of stages, given in the recipe's order: the records of finished ones.

    One that isn't finished has a `state` in its record, and `seconds` so far. `labels` are what
    kinds of stages are called, in the order in which a domain passes them.
    """
    if not stages:
        return Flow()
    evaluations = [stage for stage in stages if stage["kind"] == "evaluate"]
    evaluated = sum(stage["seconds"] for stage in evaluations)
    others = [stage for stage in stages if stage["kind"] not in ("evaluate", "report")]
    kinds = [
        kind
        for kind in labels
        if any(stage["kind"] == kind and "/" in stage["stage"] for stage in others)
    ]
    longest = max([stage["seconds"] for stage in others] + [evaluated, 1e-9])
    flow = Flow()
    for stage in others:
        name, kind = stage["stage"], stage["kind"]
        domain, inside, _ = name.partition("/")
        what = labels.get(kind, kind) + (f" {name}" if kind == "import" else "")
        step = Step(
            name,
            what,
            stage["seconds"],
            stage["seconds"] / longest,
            _caption(stage),
            kinds.index(kind) + 1 if kind in kinds else 1,
            stage.get("state", DONE),
        )
        if inside:
            flow.lanes.setdefault(domain, []).append(step)
        else:
            (flow.ends if flow.lanes else flow.starts).append(step)
    if evaluations:
        models = f"{len(evaluations)} models" if len(evaluations) > 1 else "1 model"
        states = [stage.get("state", DONE) for stage in evaluations]
        state = next(
            (state for state in (RUNNING, *states) if state in states and state != DONE), DONE
        )
        flow.ends.append(
            Step("evaluate", "evaluate", evaluated, evaluated / longest, models, state=state)
        )
    return flow


def _caption(stage: dict[str, Any]) -> str:
    """The number that says most of a stage."""
    for key in ("reward", "loss"):
        if stage.get(key) is not None:
            return f"{key} {stage[key]:.3f}"
    return f"{len(stage['experts'])} experts" if stage.get("experts") else ""
