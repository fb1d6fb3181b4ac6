"""The one recorder of what routers do, while a model trains or is evaluated.

Shapes: T tokens, C classes of tokens, E experts, X = E + 2: each expert's share, the entropy, 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megatron_bar.models.router import RowRouter, routers


class RoutingRecord:
    """Shares that routers gave the tokens of each class, by layer, over all forwards so far.

    `labels` says which class the tokens of the next forward belong to, -1 for those that don't
    count; int, [T], in the routers' order: sequence-major, as `[S, B]` flattens. None puts all into
    class 0, and waits for no GPU. A token's probabilities are taken relative to their sum, which is
    1 unless some experts aren't active.
    """

    def __init__(self, classes: int = 1) -> None:
        self.labels: torch.Tensor | None = None
        self.classes = classes
        # By layer number, [C, X], on the model's device.
        self.sums: dict[int, torch.Tensor] = {}

    def add(self, layer: int, probs_TE: torch.Tensor) -> torch.Tensor:
        """Take in what the router of `layer` gave, 0 for experts that it didn't choose.

        Returns the shares, [T, E].
        """
        shares_TE = probs_TE.detach().double()
        shares_TE = shares_TE / shares_TE.sum(1, keepdim=True)
        entropy_T = -torch.special.xlogy(shares_TE, shares_TE).sum(1)
        recorded_TX = torch.cat(
            [shares_TE, entropy_T[:, None], torch.ones_like(entropy_T)[:, None]], dim=1
        )
        sums_CX = self.sums.setdefault(
            layer, recorded_TX.new_zeros(self.classes, recorded_TX.shape[1])
        )
        if self.labels is None:
            sums_CX[0] += recorded_TX.sum(0)
            return shares_TE
        assert len(self.labels) == len(shares_TE), (
            f"labels has {len(self.labels)} tokens, the router of layer {layer} sees "
            f"{len(shares_TE)}; build the model with sequence_parallel=False"
        )
        labels_T = self.labels.to(recorded_TX.device)
        counted_T = labels_T >= 0
        sums_CX.index_add_(0, labels_T[counted_T], recorded_TX[counted_T])
        return shares_TE


@contextlib.contextmanager
def record_routing(
    model: torch.nn.Module, record: RoutingRecord | None = None
) -> Iterator[RoutingRecord]:
    """Record every router of `model` during the block. The model computes what it always does."""
    record = record or RoutingRecord()

    def hook(router: RowRouter, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        record.add(router.layer_number, output[0])

    handles = [router.register_forward_hook(hook) for router in routers(model)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
