"""OLMo-2's self-attention: queries and keys are normed over their full width, before RoPE."""

from __future__ import annotations

import torch
from megatron.core.transformer.attention import SelfAttention

from megatron_bar.models.norms import FullWidthRMSNorm


class OlmoSelfAttention(SelfAttention):
    """Megatron's SelfAttention with OLMo-2's q_norm and k_norm.

    Matches transformers' Olmo2Attention. Megatron's own q_layernorm norms each head by itself.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        tp_group = self.pg_collection.tp
        self.q_norm = FullWidthRMSNorm(self.config, self.query_projection_size, tp_group)
        self.k_norm = FullWidthRMSNorm(self.config, self.kv_projection_size, tp_group)

    def get_query_key_value_tensors(
        self, hidden_states: torch.Tensor, key_value_states=None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`x_SBH -> q_SBND, k_SBKD, v_SBKD`, this rank's heads."""
        q_SBND, k_SBKD, v_SBKD = super().get_query_key_value_tensors(
            hidden_states, key_value_states, **kwargs
        )
        return self.q_norm(q_SBND), self.k_norm(k_SBKD), v_SBKD
