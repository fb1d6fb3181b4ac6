"""The cost of ever more experts: BAR's way, and training one dense model anew.

BAR trains each domain once, and a router over all experts after each. The monolith is the dense
model, all parameters open, trained on the data of all domains there are, whenever one joins or is
improved. Both see the same tokens of a domain; evaluation and conversions are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_bar.costs.compute import stage_seconds
from megatron_bar.costs.machine import Machine
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.branch import BranchStage
from megatron_bar.stages.plan import StagePlan
from megatron_bar.stages.route import RouteStage
from megatron_bar.training.groups import group_sizes


@dataclass(frozen=True)
class Growth:
    """GPU-hours by domain, in the recipe's order."""

    domains: tuple[str, ...]
    trained: tuple[float, ...]  # a domain's own stages
    routers: tuple[float, ...]  # the router over n + 1 experts, when the n-th domain joins
    dense: tuple[float, ...]  # a domain's data on the dense model

    @property
    def bar(self) -> list[float]:
        """The cost of the n-th domain when it joins."""
        return [own + router for own, router in zip(self.trained, self.routers)]

    @property
    def monolith(self) -> list[float]:
        """Training the dense model anew when the n-th domain joins."""
        return [sum(self.dense[: n + 1]) for n in range(len(self.dense))]

    def upgrade(self, domain: str) -> tuple[float, float]:
        """GPU-hours to improve one of all experts, and to train the monolith again for it."""
        own = self.trained[self.domains.index(domain)]
        return own + self.routers[-1], self.monolith[-1]

    def extended(self, count: int) -> Growth:
        """The costs for `count` domains, those beyond the recipe's of mean cost."""
        known = len(self.domains)
        more = max(count - known, 0)

        def longer(values: tuple[float, ...]) -> tuple[float, ...]:
            return values + (sum(values) / known,) * more

        # A router's data and width grow with the experts.
        routers = tuple(self.routers[-1] * (n + 1) / known for n in range(known, known + more))
        return Growth(
            self.domains + tuple(f"domain {known + n + 1}" for n in range(more)),
            longer(self.trained),
            self.routers + routers,
            longer(self.dense),
        )


def growth(plans: Sequence[StagePlan], dense: ModelConfig, machine: Machine) -> Growth | None:
    """None where what some stage costs isn't known, and for methods other than BAR's."""
    if not any(isinstance(plan.stage, BranchStage) for plan in plans):
        return None
    routed = next(plan for plan in plans if isinstance(plan.stage, RouteStage))
    domains = tuple(dict.fromkeys(p.stage.domain for p in plans if p.stage.domain))
    training = {
        name: [p for p in plans if p.stage.domain == name and p.trainable] for name in domains
    }
    if any(plan.seconds is None for plan in plans if plan.stage.domain or plan is routed):
        return None
    trained = tuple(sum(p.gpu_hours or 0.0 for p in training[name]) for name in domains)
    routers = tuple(
        _gpu_hours(
            routed, dense.with_experts(n + 2), [f"router.{e}" for e in range(n + 2)], machine
        )
        * (n + 1)
        / len(domains)  # it sees a share of what domains there are
        for n in range(len(domains))
    )
    everything = list(group_sizes(dense))
    return Growth(
        domains,
        trained,
        routers,
        tuple(
            sum(_gpu_hours(p, dense, everything, machine) for p in training[name])
            for name in domains
        ),
    )


def _gpu_hours(
    plan: StagePlan, model: ModelConfig, trainable: list[str], machine: Machine
) -> float:
    """Of as many steps on the stage's data with another model."""
    layout = plan.stage.layout.spread(model.num_experts)
    assert plan.training is not None and plan.steps is not None
    seconds = stage_seconds(model, layout, plan.training, trainable, plan.steps, machine)
    return seconds * (layout.processes + plan.server_gpus) / 3600
