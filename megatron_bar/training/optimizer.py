"""Megatron's data-parallel wrapper, optimizer and learning-rate schedule, for open parameters."""

from __future__ import annotations

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    ParamPredicate,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.utils import unwrap_model

from megatron_bar.models.added_gradients import add_in_product, can_add
from megatron_bar.models.all_experts import AllExperts
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import all_reduce_any, gloo_groups
from megatron_bar.training.frozen_fp8 import multiply_frozen_in_fp8
from megatron_bar.training.groups import group_of, selects
from megatron_bar.training.overrides import adds_in_products, data_parallel_overrides
from megatron_bar.training.param_gather import wait_where_weights_are_read


def wrap(model: MegatronModule, training: Training) -> DistributedDataParallel:
    """Give the open parameters gradient buffers; frozen ones, which have their final values by now,
    get none.

    Raises BarError where the settings ask for products that can't be had here.
    """
    config = model.config
    if _first_layer_needs_input_gradient(model) and model.pre_process:
        model.embedding.register_forward_hook(_want_gradient)
    if config.bf16:
        model = Float16Module(config, model)
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=training.distributed_optimizer,
            **data_parallel_overrides(training),
        ),
        model,
    )
    wait_where_weights_are_read(wrapped)
    if adds_in_products(training):
        _add_in_products(wrapped)
    if training.fp8_frozen_experts:
        multiply_frozen_in_fp8(wrapped)
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = wrapped.no_sync
    return wrapped


def _add_in_products(wrapped: DistributedDataParallel) -> None:
    experts = [module for module in wrapped.modules() if isinstance(module, AllExperts)]
    open_ = [weight for part in experts for weight in part.weights if weight.requires_grad]
    for weight in filter(can_add, open_):
        add_in_product(weight)
    if not all(map(can_add, open_)):
        say(
            "note: gradient_accumulation_fusion has no effect here: products of 16-bit numbers "
            "add to fp32 on a GPU alone, with torch 2.10 or newer"
        )


def _first_layer_needs_input_gradient(model: MegatronModule) -> bool:
    """Whether the first layer must have one though nothing below it trains. All ranks call this.

    A recomputed layer whose input wants no gradient gives none to its own weights either: it would
    silently not train. And under expert parallelism, where experts train and nothing before them,
    the ranks of frozen ones would not take part in the backward all-to-all: all would hang.
    """
    experts, before = [], []
    for name, parameter in model.named_parameters():
        if not getattr(parameter, "allreduce", True):
            experts.append(parameter.requires_grad)
        elif name.startswith(("embedding.", "decoder.layers.")):
            before.append(parameter.requires_grad)
    experts_alone_train = all_reduce_any(any(experts)) and not any(before)
    return model.config.recompute_granularity is not None or experts_alone_train


def _want_gradient(embedding: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def build_optimizer(model: DistributedDataParallel, training: Training) -> MegatronOptimizer:
    """AdamW over the open parameters, with `lr_scale` by group."""
    computed = model.module.config
    config = OptimizerConfig(
        optimizer="adam",
        lr=training.lr,
        min_lr=training.lr * training.min_lr_ratio,
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        adam_eps=training.eps,
        clip_grad=training.max_grad_norm,
        bf16=computed.bf16,
        params_dtype=computed.params_dtype,
        use_distributed_optimizer=training.distributed_optimizer,
        overlap_param_gather=model.ddp_config.overlap_param_gather,
    )
    tied = unwrap_model(model).share_embeddings_and_output_weights
    overrides = get_standard_config_overrides(config)
    for pattern, scale in training.lr_scale.items():
        key = ParamKey(
            predicate=ParamPredicate(
                name=f"group {pattern}",
                fn=lambda parameter, pattern=pattern: selects(pattern, group_of(parameter), tied),
            )
        )
        overrides[key] = {"max_lr": config.lr * scale, "min_lr": config.min_lr * scale}
    optimizer = get_megatron_optimizer(
        config, [model], config_overrides=overrides, use_gloo_process_groups=gloo_groups()
    )
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                group["fused"] = True  # one pass over memory in place of ten
    model.module.config.grad_scale_func = optimizer.scale_loss
    return optimizer


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Return the norm over all ranks of the reduced gradients, before anything changes.

    Megatron's `step()`, which follows unless the step is skipped, tells it when all is done. That
    it finds it once more adds about a tenth to its time.
    """
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def build_schedule(
    optimizer: MegatronOptimizer, training: Training, steps: int
) -> OptimizerParamScheduler:
    """Linear warm-up, then the decay the stage asks for, over `steps` optimizer steps."""
    warmup = training.warmup_steps
    if warmup is None:
        warmup = round(steps * training.warmup_ratio)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=training.lr,
        min_lr=training.lr * training.min_lr_ratio,
        lr_warmup_steps=min(warmup, steps - 1),
        lr_decay_steps=steps,
        lr_decay_style=training.schedule,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )
