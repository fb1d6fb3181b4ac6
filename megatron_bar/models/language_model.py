"""A model, dense or with BAR's experts, assembled from Megatron-Core parts by its fields."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from megatron_bar.models.all_experts import AllExperts, AllExpertsLayer, AllExpertsRouter
from megatron_bar.models.attention import DecoderSelfAttention, FusedAttention
from megatron_bar.models.attention_choice import (
    AUTO,
    TRANSFORMER_ENGINE,
    AttentionChoice,
    choose_attention,
)
from megatron_bar.models.cache import RowCache
from megatron_bar.models.config import ModelConfig, Yarn
from megatron_bar.models.linear import LocalParts
from megatron_bar.models.loss import Targets, linear_loss
from megatron_bar.models.norms import NormThenAdd, RMSNorm
from megatron_bar.models.rope import RotaryByLayerType, frequencies, rotation_at
from megatron_bar.models.router import RowRouter
from megatron_bar.runtime.devices import why_no_transformer_engine
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

INIT_STD = 0.02


def transformer_config(
    model: ModelConfig,
    layout: Layout,
    dtype: torch.dtype,
    router_z_loss: float = 0.0,
    sequence_parallel: bool = True,
    overrides: Mapping[str, Any] | None = None,
    load_balancing_loss: float = 0.0,
) -> TransformerConfig:
    """Megatron's configuration for `model` laid out as `layout`, computing in `dtype`.

    `overrides` are fields of it that neither model nor layout decides.
    """
    experts = {}
    if model.num_experts is not None:
        experts = dict(
            num_moe_experts=model.num_experts,
            moe_ffn_hidden_size=model.ffn_hidden_size,
            moe_router_topk=model.experts_per_token,
            # Softmax over all experts, then top-k, as FlexOlmo does. A softmax over the k chosen
            # is the same but for a factor, which makes them sum to 1.
            moe_router_pre_softmax=not model.renormalize,
            moe_router_dtype="fp32",
            moe_router_load_balancing_type="aux_loss" if load_balancing_loss else "none",
            moe_aux_loss_coeff=load_balancing_loss,
            moe_z_loss_coeff=router_z_loss or None,
            moe_token_dispatcher_type="alltoall",
        )
    windows = {}
    if model.window is not None:
        windows = dict(
            window_size=(model.window.size - 1, 0),  # how far to the left, to the right
            window_attn_skip_freq=[
                int(model.window_of(layer) is not None) for layer in range(model.num_layers)
            ],
        )
    settings = dict(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        # Lets Megatron sum these norms' gradients over ranks that have different heads.
        qk_layernorm=model.qk_norm == "per_head",
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=INIT_STD,
        init_method=functools.partial(torch.nn.init.normal_, mean=0.0, std=INIT_STD),
        output_layer_init_method=functools.partial(torch.nn.init.normal_, mean=0.0, std=INIT_STD),
        tensor_model_parallel_size=layout.tensor,
        context_parallel_size=layout.context,
        pipeline_model_parallel_size=layout.pipeline,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.resolved_expert_tensor,
        sequence_parallel=sequence_parallel and layout.tensor > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        attention_softmax_in_fp32=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        **experts,
        **windows,
    )
    return TransformerConfig(**settings | dict(overrides or {}))


def _layer_spec(
    model: ModelConfig, config: TransformerConfig, attention: AttentionChoice
) -> ModuleSpec:
    """One layer: attention and FFN, with norms where the model has them."""
    if why_no_transformer_engine(config.params_dtype) is None:
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        backend = TESpecProvider()
    else:
        backend = LocalParts()
    core_attention = FusedAttention
    if attention.kind == TRANSFORMER_ENGINE:
        core_attention = backend.core_attention()
    linears = MLPSubmodules(
        linear_fc1=backend.column_parallel_linear(), linear_fc2=backend.row_parallel_linear()
    )
    norm_of_a_head = RMSNorm if model.qk_norm == "per_head" else None
    if config.num_moe_experts is None:
        ffn = ModuleSpec(MLP, submodules=linears)
    else:
        # One module an expert, so that a frozen expert costs no gradient of any kind.
        layer, experts, router = MoELayer, SequentialMLP, RowRouter
        if config.moe_router_topk == config.num_moe_experts:
            layer, experts, router = AllExpertsLayer, AllExperts, AllExpertsRouter
        ffn = ModuleSpec(
            layer,
            submodules=MoESubmodules(
                experts=ModuleSpec(experts, submodules=linears), router=router
            ),
        )
    return ModuleSpec(
        DecoderLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                DecoderSelfAttention,
                params={
                    "attn_mask_type": AttnMaskType.causal,
                    "full_width_norms": model.qk_norm == "full_width",
                    "yarn_factor": 1.0 if model.yarn is None else model.yarn.attention_factor,
                },
                submodules=SelfAttentionSubmodules(
                    linear_qkv=backend.column_parallel_linear(),
                    core_attention=core_attention,
                    linear_proj=backend.row_parallel_linear(),
                    q_layernorm=norm_of_a_head,
                    k_layernorm=norm_of_a_head,
                ),
            ),
            mlp=ffn,
            **_norms(model, config),
        ),
    )


def _norms(model: ModelConfig, config: TransformerConfig) -> dict[str, Any]:
    """The layer's norms and what adds to the residual, by Megatron's names of their slots.

    `h = x + attention(norm(x)); y = h + ffn(norm(h))`, with norms before sub-layers, or with norms
    after them `h = x + norm(attention(x)); y = h + norm(ffn(h))`.
    """
    if model.norm_placement == "before":
        # Megatron's own of norms for this place, torch's, knows no sequence parallelism.
        return dict(
            input_layernorm=RMSNorm,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp_bda=get_bias_dropout_add,
        )
    norm_then_add = ModuleSpec(
        NormThenAdd,
        params=dict(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon),
    )
    return dict(self_attn_bda=norm_then_add, mlp_bda=norm_then_add)


class DecoderLayer(TransformerLayer):
    """Megatron's layer, which leaves gradients off where they are off.

    It turns them on around its bias-dropout-add, so that without gradients residuals and norms
    would still become a graph, kept until the pass is over.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.bias_dropout_add_exec_handler = contextlib.nullcontext

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args,
        inference_context: RowCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, None]:
        """`x_SBH -> x_SBH`, and no context; see Megatron's.

        While generating its parts follow each other directly, as what Megatron does for a backward
        pass between them takes a good part of a step of few tokens.
        """
        if inference_context is None:
            return super().forward(hidden_states, *args, **kwargs)
        x_SBH = hidden_states
        attended = self.self_attention(
            self.input_layernorm(x_SBH),
            rotary_pos_emb=kwargs["rotary_pos_emb"],
            inference_context=inference_context,
        )
        x_SBH = self.self_attn_bda(False, False)(attended, x_SBH, 0.0)
        computed = self.mlp(self.pre_mlp_layernorm(x_SBH))
        return self.mlp_bda(False, False)(computed, x_SBH, 0.0), None


class LanguageModel(GPTModel):
    """Megatron's GPTModel, whose loss is computed with the head, for some tokens after the other.

    Tokens are rotated by their places in their own documents. With `yarn`, RoPE differs between
    layer types. This is the one place that names GPTModel.
    """

    def __init__(
        self,
        *args,
        unpadded_vocab_size: int,
        attention: AttentionChoice,
        yarn: Yarn | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.unpadded_vocab_size = unpadded_vocab_size
        self.attention = attention
        self._head_in_fp32 = self._skips_head = False
        if yarn is not None:
            self.rotary_pos_emb = RotaryByLayerType(
                self.config.kv_channels, kwargs["rotary_base"], yarn
            )

    def _preprocess(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        inference_context=None,
        **kwargs,
    ) -> tuple:
        """What Megatron prepares for the layers, with rotations by `position_ids`, by default the
        places in rows.
        """
        prepared = super()._preprocess(
            input_ids=input_ids,
            position_ids=position_ids,
            inference_context=inference_context,
            **kwargs,
        )
        if inference_context is not None:  # rows whose positions the cache knows
            return prepared
        if position_ids is None:
            places_S = torch.arange(input_ids.shape[1], device=input_ids.device)
            position_ids = places_S.expand_as(input_ids)
        decoder_input, _, *others = prepared
        return decoder_input, rotation_at(position_ids.t(), self._frequencies_Ch), *others

    @functools.cached_property
    def _frequencies_Ch(self) -> torch.Tensor:
        return frequencies(self.rotary_pos_emb)

    def compute_logits_in_fp32(self) -> None:
        """Multiply by the head in fp32 from now on, whatever type it is stored in.

        It costs a copy of the head in fp32 in each pass. The rest of the model computes as before.
        """
        self._head_in_fp32 = True
        if self.post_process:
            self.output_layer.register_forward_pre_hook(_in_fp32, with_kwargs=True)

    @contextlib.contextmanager
    def without_head(self) -> Iterator[None]:
        """Compute no logits: the loss is 0, of every token. For what is only seen in the layers."""
        self._skips_head = True
        try:
            yield
        finally:
            self._skips_head = False

    def _postprocess(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | Targets | None = None, **kwargs
    ) -> torch.Tensor:
        """Logits from hidden states or, with `labels`, losses [B, S].

        Of `Targets` that ask for the entropy they are [2, B, S], losses first.
        """
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states=hidden_states, labels=None, **kwargs)
        targets = labels if isinstance(labels, Targets) else Targets(labels)
        if self._skips_head:
            return hidden_states.new_zeros(targets.tokens_BS.shape, dtype=torch.float32)
        return self._loss(hidden_states, targets)

    def _loss(self, x_SBH: torch.Tensor, targets: Targets) -> torch.Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        head_VH = self.output_layer.weight
        if self.share_embeddings_and_output_weights:
            head_VH = self.shared_embedding_or_output_weight()
        # Each rank has the gradient by its own rows of the head, which these sum backwards.
        if self.config.sequence_parallel:
            x_SBH = gather_from_sequence_parallel_region(x_SBH, group=group)
        else:
            x_SBH = copy_to_tensor_model_parallel_region(x_SBH, group=group)
        if self._head_in_fp32:
            x_SBH, head_VH = x_SBH.float(), head_VH.float()
        labels_SB = targets.tokens_BS.t()
        found = linear_loss(
            x_SBH.flatten(0, 1),
            head_VH,
            labels_SB.flatten(),
            self.unpadded_vocab_size,
            group,
            targets.temperature,
            targets.with_entropy,
        )
        loss_BS, *entropy_BS = (x_T.view(labels_SB.shape).t() for x_T in found if x_T is not None)
        return torch.stack((loss_BS, *entropy_BS)) if entropy_BS else loss_BS.contiguous()


def _in_fp32(
    head: torch.nn.Module, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """What Megatron's head is called with, in fp32; tied embeddings come in as its `weight`."""
    weight = options.get("weight")
    weight = head.weight if weight is None else weight
    return tuple(x.float() for x in inputs), options | {"weight": weight.float()}


def build_model(
    model: ModelConfig,
    layout: Layout,
    dtype: torch.dtype = torch.float32,
    router_z_loss: float = 0.0,
    sequence_parallel: bool = True,
    overrides: Mapping[str, Any] | None = None,
    load_balancing_loss: float = 0.0,
    attention: str = AUTO,
) -> LanguageModel:
    """This rank's part of `model`, freshly initialized (normal, std 0.02; norms 1).

    Called inside `process_groups(layout)`. `router_z_loss` is the coefficient of the mean over
    tokens of logsumexp(router logits)^2, `load_balancing_loss` that of (E / k) * sum_e f_e * p_e,
    with f_e the share of the tokens that go to expert e and p_e its mean probability; both are
    taken in each layer and micro-batch, while training. Sequence parallelism, on where tensor
    parallelism is, is turned off to generate, one token at a time. `overrides` go to Megatron's
    configuration. `attention` is one of the words of models/attention_choice.py.

    Raises BarError if `layout` can't hold the model, or `attention` can't be had.
    """
    model.check(layout)
    _check_gathers(model, layout)
    config = transformer_config(
        model, layout, dtype, router_z_loss, sequence_parallel, overrides, load_balancing_loss
    )
    choice = choose_attention(
        "cuda" if torch.cuda.is_available() else "cpu",
        dtype,
        model.head_dim,
        layout.context,
        attention,
    )
    layers = [_layer_spec(model, config, choice)] * get_num_layers_to_build(config)
    return LanguageModel(
        unpadded_vocab_size=model.vocab_size,
        attention=choice,
        yarn=model.yarn,
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm),
        vocab_size=model.padded_vocab_size(layout.tensor),
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,
    )


def _check_gathers(model: ModelConfig, layout: Layout) -> None:
    """Where only some experts are active, ranks that share one gather unequal numbers of tokens."""
    some = model.num_experts is not None and not model.all_experts_active
    if some and layout.resolved_expert_tensor > 1 and dist.get_backend() == "gloo":
        raise BarError(
            f"{model.experts_per_token} of {model.num_experts} experts active: on a CPU "
            f"layout.expert_tensor {layout.resolved_expert_tensor} can't be computed, "
            "as gloo gathers equal numbers of tokens only; set it to 1 with expert > 1, "
            "or use no tensor parallelism"
        )
