"""Self-attention: queries and keys are normed before RoPE, and layers may differ in what they see.

Which layers slide, and how far they see, is in Megatron's configuration (`window_size`,
`window_attn_skip_freq`), where Transformer Engine's attention finds it too.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from megatron_bar.models.cache import RowCache
from megatron_bar.models.norms import FullWidthRMSNorm
from megatron_bar.models.rope import places_in_documents, rotated


def _window(config: TransformerConfig, layer_number: int) -> int | None:
    """How many positions a sliding layer sees, its own among them; None for one that sees all."""
    slides = is_layer_window_attention(
        config.window_size, config.window_attn_skip_freq, layer_number
    )
    return config.window_size[0] + 1 if slides else None


class DecoderSelfAttention(SelfAttention):
    """Megatron's SelfAttention with norms over the full width, and RoPE by layer type.

    Matches transformers' Olmo2Attention, Olmo3Attention and Qwen3Attention. `full_width_norms`
    norms all heads of the queries together, and those of the keys; Megatron's own q_layernorm and
    k_layernorm norm each head by itself. `yarn_factor` is what YaRN multiplies rotated queries and
    keys by in layers that see all positions.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *args,
        layer_number: int,
        full_width_norms: bool,
        yarn_factor: float = 1.0,
        **kwargs,
    ) -> None:
        window = _window(config, layer_number)
        if yarn_factor != 1.0 and window is None:
            # A rotation is linear, so the two factors can as well multiply the scores.
            config = copy.copy(config)
            config.softmax_scale = yarn_factor**2 * config.kv_channels**-0.5
        super().__init__(config, *args, layer_number=layer_number, **kwargs)
        self.window = window
        # Of one column of angles this is that one, whatever the layer.
        self.angles = slice(-1, None) if window is None else slice(0, 1)
        self.full_width_norms = full_width_norms
        self._angles_S11D: torch.Tensor | None = None  # of the pass that is under way
        if full_width_norms:
            tp_group = self.pg_collection.tp
            self.q_norm = FullWidthRMSNorm(self.config, self.query_projection_size, tp_group)
            self.k_norm = FullWidthRMSNorm(self.config, self.kv_projection_size, tp_group)

    def get_query_key_value_tensors(
        self, hidden_states: torch.Tensor, key_value_states=None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`x_SBH -> q_SBND, k_SBKD, v_SBKD`, this rank's heads; rotated, but in generation."""
        q_SBND, k_SBKD, v_SBKD = super().get_query_key_value_tensors(
            hidden_states, key_value_states, **kwargs
        )
        if self.full_width_norms:
            q_SBND, k_SBKD = self.q_norm(q_SBND), self.k_norm(k_SBKD)
        if self._angles_S11D is not None:
            cos_S11D, sin_S11D = self._angles_S11D.cos(), self._angles_S11D.sin()
            q_SBND, k_SBKD = (rotated(x, cos_S11D, sin_S11D) for x in (q_SBND, k_SBKD))
        return q_SBND, k_SBKD, v_SBKD

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args,
        rotary_pos_emb: torch.Tensor,
        inference_context: RowCache | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`x_SBH -> x_SBH`; `rotary_pos_emb` is [S, C, 1, D], C columns of angles."""
        angles_S11D = rotary_pos_emb[:, self.angles]
        if inference_context is not None:
            return self._generate(hidden_states, angles_S11D, inference_context)
        if packed_seq_params is not None:
            length = len(hidden_states) * (
                self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1)
            angles_S11D = angles_S11D[places_in_documents(packed_seq_params.cu_seqlens_q, length)]
        self._angles_S11D = angles_S11D
        try:
            # Without angles Megatron leaves the rotation to us.
            return super().forward(hidden_states, *args, rotary_pos_emb=None,
                                   packed_seq_params=packed_seq_params, **kwargs)
        finally:
            self._angles_S11D = None

    def _generate(
        self, x_SBH: torch.Tensor, angles_L11D: torch.Tensor, cache: RowCache
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        q_SBND, k_SBKD, v_SBKD = self.get_query_key_value_tensors(x_SBH)
        x_SBW = cache.attend(
            self.layer_number, q_SBND, k_SBKD, v_SBKD, angles_L11D, self.window,
            self.config.softmax_scale,
        )
        return self.linear_proj(x_SBW)


class FusedAttention(MegatronModule):
    """torch's fused attention, where Transformer Engine isn't at hand.

    Megatron's own DotProductAttention writes the scores of all heads to memory several times. Takes
    its place in the layer spec, and its arguments; softmax in fp32, scale D ** -0.5. Under context
    parallelism each rank gathers the keys and values of whole rows for its own queries, as Llama 3
    was trained (arXiv 2407.21783).
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
        self.window = _window(config, layer_number)
        self.context_group = parallel_state.get_context_parallel_group()

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
        """`q_SBND, k_SBKD, v_SBKD -> x_SBW`; `attention_mask_B1ST` is True where hidden.

        Without a mask a position sees itself and all before it. In a sliding layer it sees no
        further than the window, whatever the mask. Under context parallelism keys and values are
        this rank's, too, and the mask, which has to be there, is one over the keys of whole rows.
        """
        assert attention_bias is None and packed_seq_params is None
        visible_B1ST = None if attention_mask is None else ~attention_mask
        if self.context_group.size() > 1:
            assert attention_mask is not None
            key, value = (_whole_rows(x, self.context_group) for x in (key, value))
        if self.window is not None and len(key) > self.window:
            places_S = _places(len(key), self.context_group).to(query.device)
            near_ST = _in_window(places_S, len(key), self.window)
            visible_B1ST = near_ST if visible_B1ST is None else visible_B1ST & near_ST
        q_BNSD, k_BKTD, v_BKTD = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        x_BNSD = torch.nn.functional.scaled_dot_product_attention(
            q_BNSD, k_BKTD, v_BKTD,
            attn_mask=visible_B1ST,
            is_causal=visible_B1ST is None,
            scale=self.scale,
            enable_gqa=True,
        )
        return x_BNSD.permute(2, 0, 1, 3).flatten(2)


def _whole_rows(x_sBKD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`x_sBKD -> x_TBKD`: what all context-parallel ranks have, in the order of the rows."""
    gathered_TBKD = gather_from_sequence_parallel_region(x_sBKD, group=group)
    places_T = torch.cat([
        _slices(len(gathered_TBKD), rank, group.size()) for rank in range(group.size())
    ])
    return gathered_TBKD[places_T.argsort().to(x_sBKD.device)]


def _places(length: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The places of this rank's queries in rows of so many positions."""
    whole = group.size() == 1
    return torch.arange(length) if whole else _slices(length, group.rank(), group.size())


def _slices(length: int, rank: int, ranks: int) -> torch.Tensor:
    """The places that a context-parallel rank has, as Megatron-Core shares them out."""
    slices = torch.arange(length).chunk(2 * ranks)
    return torch.cat((slices[rank], slices[-1 - rank]))


def _in_window(places_S: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """True where the key is the query's own position or one of the `window - 1` before it."""
    distance_ST = places_S[:, None] - torch.arange(keys, device=places_S.device)
    return (distance_ST >= 0) & (distance_ST < window)
