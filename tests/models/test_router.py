"""The router's options against transformers' class, and what routing keeps to go backward."""

from __future__ import annotations

import pytest
import torch
from transformers import FlexOlmoForCausalLM

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.models.router import leave_out, routers
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.step import forward_backward
from tests.models_hf import packed_batch, random_experts, reference

BATCH = packed_batch(331)


@pytest.fixture
def one_process():
    with process_groups(Layout()):
        yield


def loaded(hf_model, folder, **options):
    hf_model.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    config = ModelConfig.load(folder / "checkpoint")
    model = build_model(config, Layout(), **options)
    load_model(model, folder / "checkpoint")
    return model, config


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(BATCH.tokens_BS, BATCH.positions_BS, BATCH.attention_mask_B1SS)


def without(hf_model: FlexOlmoForCausalLM, left_out: int) -> FlexOlmoForCausalLM:
    """The model whose expert `left_out` was never there; no more than the others are active."""
    count = hf_model.config.num_experts
    kept = [e for e in range(count) if e != left_out]
    smaller = random_experts(
        count - 1,
        num_experts_per_tok=min(hf_model.config.num_experts_per_tok, count - 1),
        norm_topk_prob=hf_model.config.norm_topk_prob,
    )
    state = {name: value for name, value in hf_model.state_dict().items() if ".mlp." not in name}
    for layer, block in enumerate(hf_model.model.layers):
        mlp = f"model.layers.{layer}.mlp"
        state[f"{mlp}.gate.weight"] = block.mlp.gate.weight[kept]
        for new, old in enumerate(kept):
            for part in ("gate_proj", "up_proj", "down_proj"):
                weight = getattr(block.mlp.experts[old], part).weight
                state[f"{mlp}.experts.{new}.{part}.weight"] = weight
    smaller.load_state_dict(state)
    return smaller


@pytest.mark.slow
@pytest.mark.parametrize("active, renormalized", [(4, False), (2, False), (2, True)])
def test_an_expert_that_is_left_out_was_never_there(active, renormalized, one_process, tmp_path):
    hf_model = random_experts(4, num_experts_per_tok=active, norm_topk_prob=renormalized)
    model, config = loaded(hf_model, tmp_path)
    whole = logits_of(model)
    leave_out(model, [config.expert_id("expert2")])
    expected, *_ = reference(without(hf_model, 2), BATCH)
    found = logits_of(model)[..., :331]
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert (found - whole[..., :331]).abs().max() > 0.01 * whole.abs().max()
    leave_out(model, [])
    assert torch.equal(logits_of(model), whole)


def test_load_balancing_loss_and_z_loss(one_process, tmp_path):
    """(E / k) * sum_e f_e * p_e and mean logsumexp^2, in each layer, beside the model's loss."""
    balance, z, experts, active = 0.5, 0.25, 4, 2
    hf_model = random_experts(experts, num_experts_per_tok=active)
    model, _ = loaded(hf_model, tmp_path, router_z_loss=z, load_balancing_loss=balance)
    wrapped = wrap(model, Training(distributed_optimizer=False))
    wrapped.train()
    forward_backward(wrapped, [BATCH])

    logits = {}
    for layer, block in enumerate(hf_model.model.layers):
        block.mlp.gate.register_forward_hook(
            lambda gate, inputs, output, layer=layer: logits.__setitem__(layer, output)
        )
    hf_model.zero_grad()
    masked = BATCH.attention_mask_B1SS.float() * torch.finfo(torch.float32).min
    out = hf_model(BATCH.tokens_BS, attention_mask=masked, position_ids=BATCH.positions_BS).logits
    losses = torch.nn.functional.cross_entropy(
        out.flatten(0, 1), BATCH.labels_BS.flatten(), reduction="none"
    )
    mask = BATCH.loss_mask_BS.flatten()
    loss = (losses * mask).sum() / mask.sum()
    for logits_TE in logits.values():
        probs_TE = logits_TE.softmax(-1)
        chosen_TE = torch.zeros_like(probs_TE).scatter(1, probs_TE.topk(active).indices, 1.0)
        balanced = experts / active * (chosen_TE.mean(0) * probs_TE.mean(0)).sum()
        loss = loss + balance * balanced + z * logits_TE.logsumexp(-1).square().mean()
    loss.backward()
    for layer, router in enumerate(routers(model)):
        expected_EH = hf_model.model.layers[layer].mlp.gate.weight.grad
        found_EH = torch.stack([row_H.main_grad for row_H in router.rows])
        assert (found_EH - expected_EH).norm() / expected_EH.norm() < 1e-4


@pytest.mark.parametrize("active", [3, 2])
def test_routing_keeps_nothing_from_below_the_first_router(active, one_process, tmp_path):
    """What autograd packs away for the backward pass, by the module that is at work."""
    model, config = loaded(random_experts(3, num_experts_per_tok=active), tmp_path)
    freeze(model, config, ["router.0", "router.1", "router.2"])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[str, int] = {}
    at_work = ["embedding"]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[at_work[-1]] = kept.get(at_work[-1], 0) + tensor.nbytes
        return tensor

    for layer, block in enumerate(model.decoder.layers):
        for name in ("self_attention", "self_attn_bda", "mlp"):
            if isinstance(module := getattr(block, name), torch.nn.Module):
                module.register_forward_pre_hook(
                    lambda *_, layer=layer, name=name: at_work.append(f"{layer}.{name}")
                )
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_BS = model(
            BATCH.tokens_BS, BATCH.positions_BS, BATCH.attention_mask_B1SS, labels=BATCH.labels_BS
        )
    below = {"embedding", "0.self_attention", "0.self_attn_bda"}
    assert not below & set(kept)
    assert kept["0.mlp"] and kept["1.self_attention"]  # and it would have been seen
    loss_BS.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(trained) == 3 * config.num_layers and all(".router." in name for name in trained)
