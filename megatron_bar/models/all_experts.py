"""The MoE layer for k = number of experts, BAR's rule: a weighted sum that routes nothing.

Every expert sees every token, so there is nothing to sort, to permute or to send by name. Ranks
that share experts gather their tokens, each computes its own experts (or its part of their width)
for all of them, and the sum over experts is a reduce-scatter. Parameters and checkpoint names are
those of Megatron's SequentialMLP.

Shapes: T tokens, of this rank or of all that share experts; E experts, e those on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch.autograd.function import once_differentiable

from megatron_bar.models.added_gradients import weight_gradient
from megatron_bar.models.fp8 import input_gradient, product
from megatron_bar.models.router import RowRouter
from megatron_bar.runtime.fusing import fused


class _WeightedExperts(torch.autograd.Function):
    """`sum_e p_e * W2_e (silu(Wg_e x) * Wu_e x)`, weights stored as [Wg_e; Wu_e] and W2_e.

    What autograd would do to it costs several times the memory: here an expert keeps the outputs of
    its two GEMMs alone, the rest is computed again. p_e multiplies the narrow output, so its own
    gradient takes no GEMM. A GEMM is done only for a gradient that somebody asks for, so a frozen
    expert has none for its weights, and one whose input is frozen too has none at all.
    """

    @staticmethod
    def forward(
        ctx, x_TH: torch.Tensor, probs_Te: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        needs_x, needs_probs, *needs_weights = ctx.needs_input_grad
        hidden, outputs = [], []
        for e, (w1_GH, w2_HF) in enumerate(zip(weights[::2], weights[1::2])):
            gate_up_TG, y_e_TH = _expert(x_TH, w1_GH, w2_HF)
            outputs.append(y_e_TH)
            needs_hidden = needs_x or any(needs_weights[2 * e : 2 * e + 2])
            hidden.append(gate_up_TG if needs_hidden else None)
        y_TH = _weighted_sum(probs_Te, outputs)
        kept = outputs if needs_probs else [None] * len(outputs)
        trains_w1 = any(needs_weights[::2])
        ctx.save_for_backward(x_TH if trains_w1 else None, probs_Te, *hidden, *kept, *weights)
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TH, probs_Te, *rest = ctx.saved_tensors
        needs_x, needs_probs, *needs_weights = ctx.needs_input_grad
        experts = probs_Te.shape[1]
        hidden, outputs, weights = rest[:experts], rest[experts : 2 * experts], rest[2 * experts :]
        grad_x_TH = None
        grad_probs: list[torch.Tensor] = []
        grad_weights: list[torch.Tensor | None] = [None] * len(weights)
        for e, (gate_up_TG, y_e_TH, w1_GH, w2_HF) in enumerate(
            zip(hidden, outputs, weights[::2], weights[1::2])
        ):
            p_T1 = probs_Te[:, e : e + 1]
            needs_hidden = gate_up_TG is not None
            grad_y_e_TH, grad_p_T = _through_weighting(grad_y_TH, p_T1, y_e_TH, needs_hidden)
            if grad_p_T is not None:
                grad_probs.append(grad_p_T)
            if grad_y_e_TH is None:
                continue
            needs_w1, needs_w2 = needs_weights[2 * e : 2 * e + 2]
            if not (needs_x or needs_w1):
                grad_weights[2 * e + 1] = weight_gradient(w2_HF, grad_y_e_TH, _swiglu(gate_up_TG))
                continue
            grad_h_TF = input_gradient(grad_y_e_TH, w2_HF)
            grad_gate_up_TG, h_TF = _through_swiglu(grad_h_TF, gate_up_TG, needs_w2)
            if h_TF is not None:
                grad_weights[2 * e + 1] = weight_gradient(w2_HF, grad_y_e_TH, h_TF)
            if needs_w1:
                grad_weights[2 * e] = weight_gradient(w1_GH, grad_gate_up_TG, x_TH)
            if needs_x:
                grad_x_TH = input_gradient(grad_gate_up_TG, w1_GH, grad_x_TH)
        grad_probs_Te = torch.stack(grad_probs, 1).to(probs_Te.dtype) if needs_probs else None
        return grad_x_TH, grad_probs_Te, *grad_weights


def _expert(
    x_TH: torch.Tensor, w1_GH: torch.Tensor, w2_HF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of an expert's two products."""
    gate_up_TG = product(x_TH, w1_GH)
    return gate_up_TG, product(_swiglu(gate_up_TG), w2_HF)


@fused
def _swiglu(gate_up_TG: torch.Tensor) -> torch.Tensor:
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_TF).mul_(up_TF)


@fused
def _weighted_sum(probs_Te: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The outputs [T, H], one an expert, weighted; in their type, whatever that of `probs_Te`."""
    # Written into what is bf16, products with p in fp32 become bf16 without a copy.
    y_TH = torch.mul(outputs[0], probs_Te[:, :1], out=torch.empty_like(outputs[0]))
    for e, y_e_TH in enumerate(outputs[1:], 1):
        y_TH.addcmul_(y_e_TH, probs_Te[:, e : e + 1])
    return y_TH


@fused
def _add_weighted(y_TH: torch.Tensor, y_e_TH: torch.Tensor, p_T1: torch.Tensor) -> None:
    y_TH.addcmul_(y_e_TH, p_T1)


def _running_sum(
    x_TH: torch.Tensor, probs_Te: torch.Tensor, weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    """What _WeightedExperts computes, for where there are no gradients: one expert's output is
    there at a time, beside the sum of those before it.
    """
    p_T1, *others = probs_Te.split(1, 1)
    y_TH = _weighted_sum(p_T1, [_expert(x_TH, *weights[:2])[1]])
    for e, p_T1 in enumerate(others, 1):
        _add_weighted(y_TH, _expert(x_TH, *weights[2 * e : 2 * e + 2])[1], p_T1)
    return y_TH


@fused
def _through_weighting(
    grad_y_TH: torch.Tensor, p_T1: torch.Tensor, y_e_TH: torch.Tensor | None, needs_output: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of one expert's output and, where that was kept, of its weight `p_T1`."""
    grad_y_e_TH = grad_p_T = None
    if y_e_TH is not None:
        wide = torch.promote_types(y_e_TH.dtype, torch.float32)  # or products would be rounded
        grad_p_T = torch.linalg.vecdot(grad_y_TH.to(wide), y_e_TH.to(wide))
    if needs_output:
        grad_y_e_TH = torch.mul(grad_y_TH, p_T1, out=torch.empty_like(grad_y_TH))
    return grad_y_e_TH, grad_p_T


@fused
def _through_swiglu(
    grad_TF: torch.Tensor, gate_up_TG: torch.Tensor, needs_hidden: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradient of both GEMM outputs, in place of that of the hidden state, and that state."""
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    silu_TF = torch.nn.functional.silu(gate_TF)
    h_TF = silu_TF * up_TF if needs_hidden else None
    if torch.compiler.is_compiling():  # one pass as it is, and no `out` of half a tensor is taken
        grad_gate_TF = torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF)
        return torch.cat((grad_gate_TF, grad_TF * silu_TF), dim=-1), h_TF
    grad_gate_up_TG = torch.empty_like(gate_up_TG)
    grad_gate_TF, grad_up_TF = grad_gate_up_TG.chunk(2, dim=-1)
    torch.mul(grad_TF, silu_TF, out=grad_up_TF)
    torch.ops.aten.silu_backward(grad_TF.mul_(up_TF), gate_TF, grad_input=grad_gate_TF)
    return grad_gate_up_TG, h_TF


class AllExperts(SequentialMLP):
    """Megatron's SequentialMLP, whose experts all compute all tokens and are summed."""

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """[Wg; Wu] and W2 of each expert on this rank."""
        return [
            weight
            for expert in self.local_experts
            for weight in (expert.linear_fc1.weight, expert.linear_fc2.weight)
        ]

    def forward(
        self, x_TH: torch.Tensor, tokens_per_expert: None, probs_Te: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """`x_TH, probs_Te -> y_TH`: this rank's part of the sum over experts, and no bias."""
        weights = self.weights
        if not torch.is_grad_enabled():
            return _running_sum(x_TH, probs_Te, weights), None
        return _WeightedExperts.apply(x_TH, probs_Te, *weights), None


class AllExpertsDispatcher(MoETokenDispatcher):
    """Brings all tokens to all ranks that share experts, and sums what these make of them.

    One all-gather of hidden states (and of probabilities) and one reduce-scatter, of sizes that
    are known beforehand: no rank waits for another to tell it what will come.
    """

    def __init__(
        self,
        config,
        pg_collection: ProcessGroupCollection,
        first_expert: int,
        num_local_experts: int,
    ) -> None:
        super().__init__(config, pg_collection)
        self.local_experts = slice(first_expert, first_expert + num_local_experts)

    def dispatch_preprocess(
        self, x_SBH: torch.Tensor, routing_map: None, probs_TE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape_SBH = x_SBH.shape
        return x_SBH.reshape(-1, x_SBH.shape[-1]), probs_TE

    def token_dispatch(
        self, x_TH: torch.Tensor, probs_TE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.tp_ep_group.size() == 1:
            return x_TH, probs_TE
        return (
            gather_from_sequence_parallel_region(x_TH, group=self.tp_ep_group),
            gather_from_sequence_parallel_region(probs_TE, group=self.tp_ep_group),
        )

    def dispatch_postprocess(
        self, x_TH: torch.Tensor, probs_TE: torch.Tensor
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        return x_TH, None, probs_TE[:, self.local_experts]

    def combine_preprocess(self, y_TH: torch.Tensor) -> torch.Tensor:
        return y_TH

    def token_combine(self, y_TH: torch.Tensor) -> torch.Tensor:
        if self.tp_ep_group.size() == 1:
            return y_TH
        return reduce_scatter_to_sequence_parallel_region(y_TH, group=self.tp_ep_group)

    def combine_postprocess(self, y_TH: torch.Tensor) -> torch.Tensor:
        return y_TH.view(self.shape_SBH)


class AllExpertsRouter(RowRouter):
    """A softmax, without the top-k, the scatter and the map that choosing would need."""

    def routing(
        self, logits_SBE: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        """`logits_SBE -> probs_TE`, and no map."""
        logits_TE = self.apply_z_loss(logits_SBE.flatten(0, 1), padding_mask)
        return logits_TE.softmax(-1), None


class AllExpertsLayer(MoELayer):
    """Megatron's MoELayer around the parts above; takes the place of MoELayer in a layer spec."""

    def __init__(
        self, *args, pg_collection: ProcessGroupCollection | None = None, **kwargs
    ) -> None:
        pg_collection = pg_collection or get_default_pg_collection()
        super().__init__(*args, pg_collection=pg_collection, **kwargs)
        self.token_dispatcher = AllExpertsDispatcher(
            self.config, pg_collection, self.local_expert_indices[0], self.num_local_experts
        )

    def forward(
        self, hidden_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`x_SBH -> y_SBH`, and no bias; see Megatron's.

        Without gradients nothing is recomputed, and the parts follow each other directly: what
        Megatron does between them takes as long as they do on a generation step's few tokens.
        """
        if torch.is_grad_enabled() or args or any(kwargs.values()):
            return super().forward(hidden_states, *args, **kwargs)
        dispatcher = self.token_dispatcher
        probs_TE, _ = self.router(hidden_states)
        x_TH, probs_TE = dispatcher.dispatch_preprocess(hidden_states, None, probs_TE)
        x_TH, probs_TE = dispatcher.token_dispatch(x_TH, probs_TE)
        x_TH, _, probs_Te = dispatcher.dispatch_postprocess(x_TH, probs_TE)
        y_TH, _ = self.experts(x_TH, None, probs_Te)
        return dispatcher.combine_postprocess(dispatcher.token_combine(y_TH)), None
