"""Rotary embeddings of models whose layers don't all rotate by the same angles."""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

from megatron_bar.models.config import Yarn


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
