"""Rotary embeddings: the rotation of each token by its place in its own document.

Angles are fp32 and so is the rotation, as in transformers, whatever the model computes in.
Shapes: C kinds of angles, h = D / 2 pairs of numbers of a head, T tokens.
"""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding
from torch.autograd.function import once_differentiable

from megatron_bar.models.config import Yarn
from megatron_bar.runtime.fusing import fused


class RotaryByLayerType(RotaryEmbedding):
    """Two angles: plain ones for sliding layers, YaRN's for those that see all positions.

    Takes the place of GPTModel's table, of which a layer gets whatever GPTModel computes. So both
    are columns of one tensor, and each layer's attention picks its own.
    """

    def __init__(self, head_dim: int, theta: float, yarn: Yarn) -> None:
        super().__init__(kv_channels=head_dim, rotary_percent=1.0, rotary_base=theta)
        self.scaled = YarnRotaryEmbedding(
            kv_channels=head_dim,
            rotary_base=theta,
            scaling_factor=yarn.factor,
            original_max_position_embeddings=yarn.original_max_position_embeddings,
            beta_fast=yarn.beta_fast,
            beta_slow=yarn.beta_slow,
        )

    def get_emb(self, max_seq_len: int, offset: int = 0) -> torch.Tensor:
        """Angles `[S, 2, 1, D]` of `max_seq_len` positions from `offset` on: plain, scaled."""
        plain_S11D = super().get_emb(max_seq_len, offset)
        # YaRN's factor on queries and keys is part of the layer's softmax scale.
        scaled_S11D, _ = self.scaled.get_emb(max_seq_len, offset)
        return torch.cat((plain_S11D, scaled_S11D), dim=1)


def frequencies(table: RotaryEmbedding) -> torch.Tensor:
    """`[C, h]`: the angles that one position turns, in each of the table's columns."""
    at_one_1C1D = table.get_emb(1, offset=1)
    return at_one_1C1D[0, :, 0, : at_one_1C1D.shape[-1] // 2].float()


def rotation_at(positions_SB: torch.Tensor, frequencies_Ch: torch.Tensor) -> torch.Tensor:
    """`[2, C, S, B, 1, h]`, fp32: cosines and sines of the positions' angles."""
    angles_CSB1h = positions_SB[..., None, None] * frequencies_Ch[:, None, None, None]
    return torch.stack((angles_CSB1h.cos(), angles_CSB1h.sin()))


def rotate(
    x_TND: torch.Tensor, cos_T1h: torch.Tensor, sin_T1h: torch.Tensor, inverse: bool = False
) -> torch.Tensor:
    """`[..., N, D] -> [..., N, D]`, in the type of the cosines; `inverse` turns back."""
    first, second = x_TND.type_as(cos_T1h).chunk(2, dim=-1)
    if inverse:
        sin_T1h = -sin_T1h
    return torch.cat((first * cos_T1h - second * sin_T1h, second * cos_T1h + first * sin_T1h), -1)


@fused
def _rotated(
    x_TND: torch.Tensor, cos_T1h: torch.Tensor, sin_T1h: torch.Tensor, inverse: bool
) -> torch.Tensor:
    return rotate(x_TND, cos_T1h, sin_T1h, inverse).type_as(x_TND)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_TND: torch.Tensor, cos_T1h: torch.Tensor, sin_T1h: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_T1h, sin_T1h)
        return _rotated(x_TND, cos_T1h, sin_T1h, False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_T1h, sin_T1h = ctx.saved_tensors
        return _rotated(grad_TND, cos_T1h, sin_T1h, True), None, None


def rotated(x_SBND: torch.Tensor, cos_SB1h: torch.Tensor, sin_SB1h: torch.Tensor) -> torch.Tensor:
    """`x_SBND -> x_SBND`, rotated in fp32 and rounded once."""
    if torch.is_grad_enabled():
        return _Rotated.apply(x_SBND, cos_SB1h, sin_SB1h)
    return _rotated(x_SBND, cos_SB1h, sin_SB1h, False)
