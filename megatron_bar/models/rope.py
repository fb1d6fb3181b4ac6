"""Rotary embeddings: the rotation, and angles that differ between layers.

Queries and keys are rotated in fp32 and rounded once, as transformers does it for OLMo.
Megatron-Core rounds cosines, sines and every product to the type of the activations.
"""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

from megatron_bar.models.config import Yarn


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x[..., D]` with its two halves rotated into each other, in the type of `x`.

    `cos` and `sin` are fp32 and repeat themselves after half of D.
    """
    x_fp32 = x.float()
    first, second = x_fp32.chunk(2, dim=-1)
    return (x_fp32 * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def places_in_documents(starts_D: torch.Tensor, length: int) -> torch.Tensor:
    """The distance of each of `length` tokens from its document's start; starts are ascending."""
    place_S = torch.arange(length, device=starts_D.device)
    return place_S - starts_D[torch.searchsorted(starts_D, place_S, right=True) - 1]


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
