"""Training steps of others at our sizes, for benchmarks/gpu_step.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

from megatron_bar.data.batch import Batch
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.devices import transformer_engine_runs

Step = tuple[Callable[[], float], str]  # a step that tells its loss, and a word on it


def transformers_step(model: ModelConfig, batch: Batch, dtype: str, kind: str) -> Step:
    """FlexOlmo's, whose parameters are all in `dtype`."""
    config = FlexOlmoConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=model.max_position_embeddings,
        num_experts=model.num_experts,
        num_experts_per_tok=model.experts_per_token,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    device = torch.cuda.current_device()
    theirs = FlexOlmoForCausalLM(config).to(device=device, dtype=getattr(torch, dtype)).train()
    last = f".mlp.experts.{model.num_experts - 1}."
    for name, parameter in theirs.named_parameters():
        trains = kind == "all" or name.endswith("mlp.gate.weight")
        parameter.requires_grad_(trains or (kind == "mid" and last in name))
    open_ = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(open_, lr=1e-4, fused=True)
    tokens_BS, labels_BS = (x.to(device) for x in (batch.tokens_BS, batch.labels_BS))

    def step() -> float:
        optimizer.zero_grad()
        logits_BSV = theirs(tokens_BS, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BSV.flatten(0, 1).float(), labels_BS.flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(open_, 1.0)
        optimizer.step()
        return loss.item()

    return step, "sdpa, optimizer state in the compute type"


def stock_step(model: ModelConfig, batch: Batch, dtype: str, kind: str) -> Step:
    """Megatron-Core's own, with Transformer Engine and its grouped GEMM where they are."""
    with_te = transformer_engine_runs()
    fused = torch.cuda.is_available()
    bf16 = dtype == "bfloat16"
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=getattr(torch, dtype),
        pipeline_dtype=getattr(torch, dtype),
        bf16=bf16,
        num_moe_experts=model.num_experts,
        moe_ffn_hidden_size=model.ffn_hidden_size,
        moe_router_topk=model.experts_per_token,
        moe_router_pre_softmax=True,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="alltoall",
        moe_grouped_gemm=with_te,
        moe_permute_fusion=with_te,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        cross_entropy_loss_fusion=fused,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        qk_layernorm=True,
    )
    make_spec = get_gpt_layer_with_transformer_engine_spec if with_te else get_gpt_layer_local_spec
    stock = GPTModel(
        config,
        make_spec(
            num_experts=model.num_experts,
            moe_grouped_gemm=with_te,
            qk_layernorm=True,
            normalization="RMSNorm",
        ),
        model.vocab_size,
        model.max_position_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,
    )
    for name, parameter in stock.named_parameters():
        trains = kind == "all" or "router" in name
        parameter.requires_grad_(trains or (kind == "mid" and ".experts." in name))
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        Float16Module(config, stock) if bf16 else stock,
    )
    config.finalize_model_grads_func = finalize_model_grads
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-4,
            bf16=bf16,
            params_dtype=getattr(torch, dtype),
            use_distributed_optimizer=True,
            clip_grad=1.0,
        ),
        [wrapped],
    )
    config.grad_scale_func = optimizer.scale_loss
    device = torch.cuda.current_device()
    tokens_BS, labels_BS, positions_BS = (
        x.to(device) for x in (batch.tokens_BS, batch.labels_BS, batch.positions_BS)
    )
    length = tokens_BS.shape[1]
    hidden_SS = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)[None, None]

    def forward_step(data: object, module: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
        mask = None if with_te else hidden_SS
        loss_BS = module(tokens_BS, positions_BS, mask, labels=labels_BS)
        return loss_BS, lambda loss_BS: (loss_BS.float().mean(), loss_BS.detach().float().mean())

    def step() -> float:
        optimizer.zero_grad()
        wrapped.zero_grad_buffer()
        (loss,) = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter([None]),
            model=[wrapped],
            num_microbatches=1,
            seq_length=length,
            micro_batch_size=len(tokens_BS),
            forward_only=False,
        )
        optimizer.step()
        return loss.item()

    return step, "Transformer Engine" if with_te else "without Transformer Engine"
