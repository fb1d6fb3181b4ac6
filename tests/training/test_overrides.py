"""Which of Megatron-Core's fields a recipe may set, and why the others are refused."""

from __future__ import annotations

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import transformer_config
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.overrides import (
    check_overrides,
    data_parallel_overrides,
    transformer_overrides,
)

DENSE = ModelConfig(128, 48, 80, 4, 6, 2)
ALL, SOME = DENSE.with_experts(3), DENSE.with_experts(3, 2)


def _training(recompute: str = "none", **fields) -> Training:
    return Training(recompute=recompute, megatron=fields)


@pytest.mark.parametrize(
    "model, training",
    [
        (ALL, _training(overlap_grad_reduce="on", bucket_size="1_000_000")),
        (SOME, _training(bias_activation_fusion=True)),
        (DENSE, _training(bias_activation_fusion=False)),
        (ALL, _training("full", recompute_method="block", recompute_num_layers=2)),
        (ALL, _training("moe", recompute_modules=["moe", "core_attn"])),
    ],
)
def test_what_makes_a_stage_faster_or_smaller_gets_through(model, training):
    check_overrides(training, model, "x")
    config = transformer_config(
        model, Layout(), torch.float32, overrides=transformer_overrides(training)
    )
    parallel = DistributedDataParallelConfig(**data_parallel_overrides(training))
    for name, value in training.megatron.items():
        found = getattr(config if hasattr(config, name) else parallel, name)
        assert found == {"on": True, "1_000_000": 1_000_000}.get(str(value), value)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_gradients_are_reduced_beside_others_on_a_gpu_unless_the_recipe_says_no(
    on_gpu, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpu)
    assert data_parallel_overrides(_training())["overlap_grad_reduce"] is on_gpu
    said_no = data_parallel_overrides(_training(overlap_grad_reduce=False))
    assert said_no["overlap_grad_reduce"] is False


@pytest.mark.parametrize(
    "name, value, message",
    [
        # change the model, some by doing nothing in silence
        ("softmax_scale", 0.5, "would train another model"),
        ("window_size", (4, 0), "would train another model"),
        ("no_rope_freq", 2, "would train another model"),
        ("moe_router_force_load_balancing", True, "would train another model"),
        ("moe_router_score_function", "sigmoid", "would train another model"),
        ("moe_router_topk_scaling_factor", 2.0, "would train another model"),
        ("moe_apply_probs_on_input", True, "would train another model"),
        ("fp32_residual_connection", True, "would train another model"),
        # somebody else's
        ("layernorm_epsilon", 1e-3, "is decided by the recipe's own keys"),
        ("moe_router_topk", 1, "is decided by the recipe's own keys"),
        ("lr", 1.0, "is decided by the recipe's own keys"),
        ("recompute_granularity", "full", "is decided by the recipe's own keys"),
        # break, or do nothing
        ("tp_comm_overlap", True, "isn't supported here: the buffers that it needs"),
        ("use_precision_aware_optimizer", True, "isn't supported here: .* fp32 weights"),
        ("fused_single_qkv_rope", True, "isn't supported here: it would leave out the norms"),
        ("apply_rope_fusion", True, "isn't supported here: queries and keys are rotated in fp32"),
        ("cuda_graph_impl", "local", "isn't supported here: documents differ in length"),
        ("deterministic_mode", True, "isn't supported here: .* the stage's key deterministic"),
        ("overlap_param_gather", True, "has an effect only with overlap_grad_reduce: true"),
        (
            "bias_dropout_fusion",
            True,
            "isn't supported here: it would have no effect, or hasn't been",
        ),
        ("overlap_gard_reduce", True, "is no field .*; did you mean overlap_grad_reduce"),
        ("bucket_size", 1000, "has an effect only with overlap_grad_reduce: true"),
        ("bias_activation_fusion", True, "has no effect where every token goes to all experts"),
        ("recompute_num_layers", 2, "has an effect only with recompute: full"),
        ("recompute_modules", ["moe"], "has an effect only with recompute: moe"),
        # values
        ("overlap_grad_reduce", "maybe", "is 'maybe' and should be true or false"),
        ("bucket_size", "big", "is 'big' and should be a whole number"),
        ("bucket_size", 0, "is 0 and should be 1 or more"),
        ("recompute_method", "each", "is 'each' and should be uniform or block"),
        ("recompute_modules", "moe", "is 'moe' and should be a list of moe, mlp, core_attn"),
    ],
)
def test_the_rest_is_refused_with_the_reason(name, value, message):
    with pytest.raises(BarError, match=rf"math/sft: megatron\.{name} {message}"):
        check_overrides(_training(**{name: value}), ALL, "math/sft")


def test_every_field_there_is_gets_an_answer():
    """New versions bring new fields; none of them passes unseen."""
    names = {
        name
        for config in (TransformerConfig, DistributedDataParallelConfig, OptimizerConfig)
        for name in config.__dataclass_fields__
    }
    with pytest.raises(BarError) as raised:
        check_overrides(_training(**dict.fromkeys(names, True)), SOME, "x")
    refused = {line.split()[1].removeprefix("megatron.") for line in str(raised.value).splitlines()}
    # The others want more than true.
    assert names - refused == {
        "overlap_grad_reduce",
        "overlap_param_gather",
        "bias_activation_fusion",
    }
