"""How a model's routers choose: recorded while it runs, and said in words.

Shapes: T tokens, L layers, E experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from megatron_bar.models.router import RowRouter

DEAD = 0.02  # an expert that no layer gives more of any task
DOMINATING = 0.8  # an expert that gets more of every task
EVEN = 1.25  # times 1/E: no expert gets more, so the task leans on none


class RoutingRecord:
    """Mean probability of each expert, by layer, over all forwards so far.

    `tokens_mask` says which tokens of the next forward count, padding for one doesn't; bool, [T],
    in the router's order: sequence-major, as `[S, B]` flattens. None counts all.
    """

    def __init__(self) -> None:
        self.tokens_mask: torch.Tensor | None = None
        self._sums: dict[int, torch.Tensor] = {}  # by layer number
        self._counts: dict[int, int] = {}

    def add(self, layer: int, probs_TE: torch.Tensor) -> None:
        """Take in what the router of `layer` gave; 0 for experts that it didn't choose."""
        probs_TE = probs_TE.detach()
        if self.tokens_mask is not None:
            mask_T = self.tokens_mask.reshape(-1)
            assert len(mask_T) == len(probs_TE), (
                f"tokens_mask has {len(mask_T)} tokens, the router of layer {layer} sees "
                f"{len(probs_TE)}; build the model with sequence_parallel=False"
            )
            probs_TE = probs_TE[mask_T.to(probs_TE.device, torch.bool)]
        self._sums[layer] = self._sums.get(layer, 0) + probs_TE.double().sum(0).cpu()
        self._counts[layer] = self._counts.get(layer, 0) + len(probs_TE)

    def mean_LE(self) -> list[list[float]]:
        """Layers in order; those on this pipeline rank."""
        assert self._sums and all(self._counts.values()), "no token has been routed yet"
        return [(self._sums[layer] / self._counts[layer]).tolist() for layer in sorted(self._sums)]


@contextlib.contextmanager
def record_routing(model: torch.nn.Module) -> Iterator[RoutingRecord]:
    """Record every router of `model` during the block. The model computes what it always does."""
    record = RoutingRecord()

    def hook(router: RowRouter, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        record.add(router.layer_number, output[0])

    handles = [module.register_forward_hook(hook) for module in model.modules()
               if isinstance(module, RowRouter)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def mean_over_layers(probs_LE: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(probs_LE) for column in zip(*probs_LE)]


def describe_routing(
    routing: dict[str, list[list[float]]], experts: Sequence[str]
) -> list[str]:
    """One line a task, on the expert it leans on; then the experts that are dead or dominate.

    `routing` is [L][E] by task, `experts` the names by global id.
    """
    means = {task: mean_over_layers(probs_LE) for task, probs_LE in routing.items()}
    lines = [_describe(task, mean_E, experts) for task, mean_E in means.items()]
    for e, name in enumerate(experts):
        probs = [layer_E[e] for probs_LE in routing.values() for layer_E in probs_LE]
        if not probs or len(experts) < 2:
            continue
        least = min(mean_E[e] for mean_E in means.values())
        if max(probs) < DEAD:
            lines.append(f"Expert {name} is dead: no layer gives it {DEAD:.0%} of any task.")
        elif least > DOMINATING:
            lines.append(
                f"Expert {name} dominates: every task gives it {least:.0%} or more, which leaves "
                "little to the others."
            )
    return lines


def _describe(task: str, mean_E: list[float], experts: Sequence[str]) -> str:
    ranked = sorted(range(len(experts)), key=lambda e: -mean_E[e])
    best, second = ranked[0], ranked[1:2]
    if mean_E[best] < EVEN / len(experts):
        return f"{task} leans on no expert: {experts[best]} has most, with {mean_E[best]:.0%}."
    who = "its own expert" if experts[best] == task else experts[best]
    line = f"{task} leans on {who} ({mean_E[best]:.0%})"
    line += "".join(f", then {experts[e]} ({mean_E[e]:.0%})" for e in second)
    if task in experts and experts.index(task) not in (best, *second):
        line += f"; its own expert has {mean_E[experts.index(task)]:.0%}"
    return f"{line}."
