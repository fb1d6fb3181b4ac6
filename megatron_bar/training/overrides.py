"""Fields of Megatron-Core's configurations that a recipe sets by their own names.

A user may set what makes a stage faster or smaller and leaves alone what the model computes, what
is in a checkpoint and what the recipe's own keys say. Those fields are listed here, each with what
it needs to have an effect. All others are refused: a field that does nothing in silence, or trains
a model which neither the next stage nor the export computes, costs more than it can bring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.recipe.typed import as_type, did_you_mean
from megatron_bar.runtime.errors import raise_all

# What a recipe's own keys, the model or the layout decide.
_DECIDED = frozenset(
    """
    activation_func add_bias_linear add_qkv_bias attention_dropout attention_softmax_in_fp32 bf16
    calculate_per_token_loss context_parallel_size ffn_hidden_size finalize_model_grads_func fp16
    fp8 fp4 gated_linear_unit grad_scale_func grad_sync_func hidden_dropout hidden_size init_method
    init_method_std kv_channels layernorm_epsilon moe_aux_loss_coeff
    moe_ffn_hidden_size moe_grouped_gemm moe_layer_freq moe_router_dtype
    moe_router_load_balancing_type moe_router_pre_softmax moe_router_topk moe_z_loss_coeff
    no_sync_func normalization num_attention_heads num_layers num_moe_experts num_query_groups
    output_layer_init_method param_sync_func params_dtype pipeline_dtype qk_layernorm
    recompute_granularity
    rotary_interleaved sequence_parallel tensor_model_parallel_size pipeline_model_parallel_size
    expert_model_parallel_size expert_tensor_parallel_size virtual_pipeline_model_parallel_size
    grad_reduce_in_fp32 use_distributed_optimizer use_megatron_fsdp use_custom_fsdp
    adam_beta1 adam_beta2 adam_eps clip_grad decoupled_lr decoupled_min_lr lr min_lr optimizer
    timers weight_decay
""".split()
)
# What would make another model of it.
_OF_THE_MODEL = frozenset(
    """
    activation_func_clamp_value apply_query_key_layer_scaling
    apply_residual_connection_post_layernorm attention_output_gate fp32_residual_connection
    glu_linear_offset layernorm_zero_centered_gamma moe_apply_probs_on_input
    moe_expert_capacity_factor moe_input_jitter_eps moe_latent_size moe_pad_expert_input_to_capacity
    moe_router_bias_update_rate moe_router_enable_expert_bias moe_router_force_load_balancing
    moe_router_group_topk moe_router_num_groups moe_router_score_function
    moe_router_topk_limited_devices moe_router_topk_scaling_factor
    moe_shared_expert_gate moe_shared_expert_intermediate_size moe_token_drop_policy
    moe_token_dropping mtp_loss_scaling_factor mtp_num_layers multi_latent_attention no_rope_freq
    qk_clip qk_clip_alpha qk_clip_threshold qk_l2_norm softmax_scale softmax_type
    window_attn_skip_freq window_size
""".split()
)


@dataclass(frozen=True)
class _Free:
    """A field that is the user's; `needs` tells why it has no effect, where it has none."""

    type: type
    needs: Callable[[Training, ModelConfig], str | None] = lambda training, model: None
    words: tuple[str, ...] = ()


def _is_on(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "on", "1")


def _overlap(training: Training, model: ModelConfig) -> str | None:
    if _is_on(training.megatron.get("overlap_grad_reduce", _overlaps_by_default())):
        return None
    return "has an effect only with overlap_grad_reduce: true"


def _gather(training: Training, model: ModelConfig) -> str | None:
    if not _is_on(training.megatron["overlap_param_gather"]):
        return None
    if isinstance(training, Rlvr):
        return "has no effect in RLVR, where all weights are read as soon as a step is done"
    if not training.distributed_optimizer:
        return "has an effect only with distributed_optimizer: true"
    return _overlap(training, model)


def _overlaps_by_default() -> bool:
    """Gradients are reduced while others are computed where that happens side by side."""
    return torch.cuda.is_available()


def _full(training: Training, model: ModelConfig) -> str | None:
    return None if training.recompute == "full" else "has an effect only with recompute: full"


def _selective(training: Training, model: ModelConfig) -> str | None:
    return None if training.recompute == "moe" else "has an effect only with recompute: moe"


def _megatrons_ffn(training: Training, model: ModelConfig) -> str | None:
    if model.all_experts_active:
        return "has no effect where every token goes to all experts, whose FFN is fused already"
    return None


def _all_experts(training: Training, model: ModelConfig) -> str | None:
    if model.all_experts_active:
        return None
    return "has an effect only on experts that get every token"


_FREE = {
    "overlap_grad_reduce": _Free(bool),
    "bucket_size": _Free(int, _overlap),
    "overlap_param_gather": _Free(bool, _gather),
    "gradient_accumulation_fusion": _Free(bool, _all_experts),
    "bias_activation_fusion": _Free(bool, _megatrons_ffn),
    "recompute_method": _Free(str, _full, ("uniform", "block")),
    "recompute_num_layers": _Free(int, _full),
    "recompute_modules": _Free(list, _selective, ("moe", "mlp", "core_attn")),
}
# What somebody might well set, and why it isn't among them.
_NOT_HERE = {
    "apply_rope_fusion": "queries and keys are rotated in fp32 by code of the project's own",
    "cuda_graph_impl": "documents differ in length from step to step, and a graph's shapes can't",
    "deterministic_mode": "it is one of several switches; the stage's key deterministic sets all",
    "fused_single_qkv_rope": "it would leave out the norms of queries and keys",
    "tp_comm_overlap": "the buffers that it needs are made by Megatron-LM's own training script",
    "use_precision_aware_optimizer": "states to go on from, and the memory table, have no place "
    "for its fp32 weights",
}
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


def _fields(config: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(config) if field.init)


def check_overrides(training: Training, model: ModelConfig, where: str) -> None:
    """Raise BarError, a line each, for fields that aren't the user's or that would do nothing."""
    raise_all(
        [
            f"{where}: megatron.{name} {fault}"
            for name in training.megatron
            for fault in _faults(name, training, model)
        ]
    )


def _faults(name: str, training: Training, model: ModelConfig) -> Iterator[str]:
    known = set().union(
        *map(_fields, (TransformerConfig, DistributedDataParallelConfig, OptimizerConfig))
    )
    if name in _DECIDED:
        yield "is decided by the recipe's own keys, the model or the layout; leave it out"
    elif name in _OF_THE_MODEL:
        yield ("would train another model than the next stage and the export compute; leave it out")
    elif name in _FREE:
        try:
            _value(name, training.megatron[name])
        except ValueError as error:
            yield f"is {training.megatron[name]!r} and should be {error}"
            return
        why = _FREE[name].needs(training, model)
        if why is not None:
            yield why
    elif name in _NOT_HERE:
        yield f"isn't supported here: {_NOT_HERE[name]}"
    elif name not in known:
        yield (
            "is no field of Megatron-Core's TransformerConfig, DistributedDataParallelConfig or "
            f"OptimizerConfig{did_you_mean(name, [*_FREE, *known])}"
        )
    else:
        yield (
            "isn't supported here: it would have no effect, or hasn't been tried; what can be "
            f"set is {', '.join(_FREE)}"
        )


def _value(name: str, written: Any) -> Any:
    """Of a free field, as Megatron wants it. Raises ValueError with what it should be."""
    free = _FREE[name]
    if free.type is list:
        if not isinstance(written, list) or not set(written) <= set(free.words):
            raise ValueError(f"a list of {', '.join(free.words)}")
        return written
    value = as_type(str(written), free.type)
    if free.words and value not in free.words:
        raise ValueError(" or ".join(free.words))
    if free.type is int and value < 1:
        raise ValueError("1 or more")
    return value


def _for(config: type, training: Training) -> dict[str, Any]:
    fields = _fields(config)
    return {
        name: _value(name, written) for name, written in training.megatron.items() if name in fields
    }


def transformer_overrides(training: Training) -> dict[str, Any]:
    """Settings of `training` for TransformerConfig, those of its own keys included."""
    deterministic = {"deterministic_mode": True} if training.deterministic else {}
    overrides = _RECOMPUTE[training.recompute] | deterministic | _for(TransformerConfig, training)
    # Megatron's linear layers would want compiled code for it; see `adds_in_products`.
    overrides.pop("gradient_accumulation_fusion", None)
    return overrides


def adds_in_products(training: Training) -> bool:
    """Whether the products that make experts' gradients are to add them to their buffers."""
    name = "gradient_accumulation_fusion"
    return name in training.megatron and _value(name, training.megatron[name])


def data_parallel_overrides(training: Training) -> dict[str, Any]:
    """Settings of `training` for DistributedDataParallelConfig."""
    default = {"overlap_grad_reduce": _overlaps_by_default()}
    return default | _for(DistributedDataParallelConfig, training)
