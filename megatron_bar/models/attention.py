"""OLMo-2's self-attention: queries and keys are normed over their full width, before RoPE."""

from __future__ import annotations

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

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


class FusedAttention(MegatronModule):
    """torch's fused attention, where Transformer Engine isn't at hand.

    Megatron's own DotProductAttention writes the scores of all heads to memory several times. Takes
    its place in the layer spec, and its arguments; softmax in fp32, scale D ** -0.5.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_unused,
    ) -> None:
        super().__init__(config)
        self.scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: None = None,
        packed_seq_params: None = None,
    ) -> torch.Tensor:
        """`q_SBND, k_TBKD, v_TBKD -> x_SBW`; `attention_mask_B1ST` is True where hidden.

        Without a mask a position sees itself and all before it; a single one sees all T.
        """
        assert attention_bias is None and packed_seq_params is None
        q_BNSD, k_BKTD, v_BKTD = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        x_BNSD = torch.nn.functional.scaled_dot_product_attention(
            q_BNSD, k_BKTD, v_BKTD,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None and query.shape[0] > 1,
            scale=self.scale,
            enable_gqa=True,
        )
        return x_BNSD.permute(2, 0, 1, 3).flatten(2)
