"""Self-attention: queries and keys are normed before RoPE, and layers may differ in what they see.

Which layers slide, and how far they see, is in Megatron's configuration (`window_size`,
`window_attn_skip_freq`), where Transformer Engine's attention finds it too.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from megatron_bar.models.attention_choice import varlen_parameters
from megatron_bar.models.cache import RowCache
from megatron_bar.models.norms import FullWidthRMSNorm
from megatron_bar.models.packed import PackedDocuments
from megatron_bar.models.rope import rotated


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
        # Of one kind of angles this is that one, whatever the layer.
        self.kind = -1 if window is None else 0
        self._rotation: torch.Tensor | None = None  # while a forward pass runs
        self.full_width_norms = full_width_norms
        if full_width_norms:
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
        if self.full_width_norms:
            return (
                self.q_norm(q_SBND, self._rotation),
                self.k_norm(k_SBKD, self._rotation),
                v_SBKD,
            )
        if self._rotation is not None:
            q_SBND, k_SBKD = (rotated(x, *self._rotation) for x in (q_SBND, k_SBKD))
        return q_SBND, k_SBKD, v_SBKD

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args,
        rotary_pos_emb: torch.Tensor,
        inference_context: RowCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`x_SBH -> x_SBH`; `rotary_pos_emb` is [2, C, S, B, 1, h], rotations of C kinds, and while
        generating [S, C, 1, D], all positions' angles.
        """
        if inference_context is not None:
            angles = rotary_pos_emb[:, self.kind][:, None]
            return self._generate(hidden_states, angles, inference_context)
        # Megatron's own rotation goes by places in a row, and waits for the device to tell them.
        self._rotation = rotary_pos_emb[:, self.kind]
        try:
            return super().forward(hidden_states, *args, rotary_pos_emb=None, **kwargs)
        finally:
            self._rotation = None

    def _generate(
        self, x_SBH: torch.Tensor, angles_L11D: torch.Tensor, cache: RowCache
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        q_SBND, k_SBKD, v_SBKD = self.get_query_key_value_tensors(x_SBH)
        x_SBW = cache.attend(
            self.layer_number,
            q_SBND,
            k_SBKD,
            v_SBKD,
            angles_L11D,
            self.window,
            self.config.softmax_scale,
        )
        return self.linear_proj(x_SBW)


class FusedAttention(MegatronModule):
    """torch's fused attention: by document boundaries, or with a mask.

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
        # With a mask torch may call cuDNN, whose gradients can be no numbers: see docs/gpu.md.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: None = None,
        packed_seq_params: PackedDocuments | None = None,
    ) -> torch.Tensor:
        """`q_SBND, k_SBKD, v_SBKD -> x_SBW`; `attention_mask_B1ST` is True where hidden.

        Without a mask a position sees itself and all before it. In a sliding layer it sees no
        further than the window, whatever the mask. Under context parallelism keys and values are
        this rank's, too, and the mask, which has to be there, is one over the keys of whole rows.
        With `packed_seq_params` there is no B: `q_TND, k_TKD, v_TKD -> x_TND`.
        """
        assert attention_bias is None
        if packed_seq_params is not None:
            return self._by_boundaries(query, key, value, packed_seq_params)
        visible_B1ST = None if attention_mask is None else ~attention_mask
        if self.context_group.size() > 1:
            assert attention_mask is not None
            key, value = (_whole_rows(x, 1, self.context_group) for x in (key, value))
        if self.window is not None and len(key) > self.window:
            places_S = _places(len(key), self.context_group, query.device)
            near_ST = _in_window(places_S, len(key), self.window)
            visible_B1ST = near_ST if visible_B1ST is None else visible_B1ST & near_ST
        q_BNSD, k_BKTD, v_BKTD = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        x_BNSD = torch.nn.functional.scaled_dot_product_attention(
            q_BNSD,
            k_BKTD,
            v_BKTD,
            attn_mask=visible_B1ST,
            is_causal=visible_B1ST is None,
            scale=self.scale,
            enable_gqa=True,
        )
        return x_BNSD.permute(2, 0, 1, 3).flatten(2)

    def _by_boundaries(
        self,
        q_TND: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        packed: PackedDocuments,
    ) -> torch.Tensor:
        if self.context_group.size() > 1:
            k_TKD, v_TKD = (_whole_rows(x, packed.rows, self.context_group) for x in (k_TKD, v_TKD))
        window = (-1 if self.window is None else self.window - 1, 0)
        parts = [
            varlen_attention(
                q_TND[span.queries],
                k_TKD[span.keys],
                v_TKD[span.keys],
                span.query_bounds_D,
                span.key_bounds_D,
                span.longest_queries,
                span.longest_keys,
                scale=self.scale,
                window_size=window,
            )
            for span in packed.spans
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def varlen_attention(*args, **kwargs) -> torch.Tensor:
    """torch's varlen_attn with heads that share keys, which versions before 2.12 don't ask of."""
    from torch.nn.attention.varlen import varlen_attn  # torch 2.9 has none, and masks need none

    if "enable_gqa" in varlen_parameters():
        kwargs["enable_gqa"] = True
    out = varlen_attn(*args, **kwargs)
    assert isinstance(out, torch.Tensor)  # no log-sum-exp was asked for
    return out


def _whole_rows(x: torch.Tensor, rows: int, group: dist.ProcessGroup) -> torch.Tensor:
    """`[R * s, ...] -> [R * T, ...]`: what all context-parallel ranks have, in the rows' order.

    Each has two slices of each of R rows, one from either end.
    """
    ranks = group.size()
    gathered = gather_from_sequence_parallel_region(x, group=group)
    parts = gathered.view(ranks, rows, 2, -1, *x.shape[1:])
    firsts, lasts = parts[:, :, 0], parts[:, :, 1].flip(0)
    return torch.cat((firsts, lasts)).transpose(0, 1).flatten(0, 2)


def _places(length: int, group: dist.ProcessGroup, device: torch.device) -> torch.Tensor:
    """The places of this rank's queries in rows of so many positions."""
    places = torch.arange(length, device=device)
    if group.size() == 1:
        return places
    slices = places.chunk(2 * group.size())
    return torch.cat((slices[group.rank()], slices[-1 - group.rank()]))


def _in_window(places_S: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """True where the key is the query's own position or one of the `window - 1` before it."""
    distance_ST = places_S[:, None] - torch.arange(keys, device=places_S.device)
    return (distance_ST >= 0) & (distance_ST < window)
