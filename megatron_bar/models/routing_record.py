"""A record of what routers choose while a model runs, for training's metrics and for reports.

Shapes: T tokens, C classes of tokens, L layers, E experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megatron_bar.models.router import RowRouter, routers


class RoutingRecord:
    """Shares that routers gave the tokens of each class, by layer, over all forwards so far.

    `labels` says which class the tokens of the next forward belong to, -1 for those that don't
    count; int, [T], on the model's device, in the routers' order: sequence-major, as `[S, B]`
    flattens. None puts all into class 0. A token's probabilities are taken relative to their sum,
    which is 1 unless some experts aren't active.

    Nothing that is recorded is brought to the host, which would make it wait for the device.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        classes: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        """`layers` are those of the whole model; `device` is the current one by default."""
        self.labels: torch.Tensor | None = None
        place = torch.cuda.current_device() if device is None else device
        # One class more, for tokens that don't count.
        self._sums_LCX = torch.zeros(
            layers, classes + 1, experts + 2, dtype=torch.float64, device=place
        )

    @property
    def sums_LCX(self) -> torch.Tensor:
        """[L, C, E + 2]: sums of the experts' shares and of entropies, and tokens.

        Of this rank's tokens; 0 for layers of other ranks.
        """
        return self._sums_LCX[:, :-1]

    def add(self, layer: int, probs_TE: torch.Tensor) -> torch.Tensor:
        """Take in what the router of `layer` gave, 0 for experts that it didn't choose.

        Returns the shares, [T, E].
        """
        shares_TE = probs_TE.detach().double()
        shares_TE = shares_TE / shares_TE.sum(1, keepdim=True)
        entropy_T1 = -torch.special.xlogy(shares_TE, shares_TE).sum(1, keepdim=True)
        recorded_TX = torch.cat([shares_TE, entropy_T1, torch.ones_like(entropy_T1)], dim=1)
        sums_CX = self._sums_LCX[layer - 1]
        if self.labels is None:
            sums_CX[0] += recorded_TX.sum(0)
            return shares_TE
        assert len(self.labels) == len(shares_TE), (
            f"labels has {len(self.labels)} tokens, the router of layer {layer} sees "
            f"{len(shares_TE)}; build the model with sequence_parallel=False"
        )
        sums_CX.index_add_(0, self.labels.remainder(len(sums_CX)), recorded_TX)  # -1 is the last
        return shares_TE


def layer_means(sums_LX: torch.Tensor) -> tuple[list[list[float]], list[float]]:
    """The mean share of each expert, [L][E], and the mean entropy in nats, [L], of such sums."""
    means_LX = (sums_LX[:, :-1] / sums_LX[:, -1:]).cpu()
    return means_LX[:, :-1].tolist(), means_LX[:, -1].tolist()


@contextlib.contextmanager
def record_routing(model: torch.nn.Module, record: RoutingRecord) -> Iterator[RoutingRecord]:
    """Record every router of `model` during the block. The model computes what it always does."""

    def hook(router: RowRouter, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        record.add(router.layer_number, output[0])

    handles = [router.register_forward_hook(hook) for router in routers(model)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
