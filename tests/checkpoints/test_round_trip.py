"""Every kind of model comes back from a checkpoint as it went in: bits, dtypes and config."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.hf import model_config_from_hf
from tests.models_hf import (
    DENSE,
    MIXTURES,
    random_dense,
    random_experts,
    random_model,
    random_olmo3,
)


def _bf16_with_fp32_routers():
    model = random_experts(2).bfloat16()
    for layer in model.model.layers:
        layer.mlp.gate.float()
    return model


MODELS = {name: partial(random_model, name) for name in DENSE | MIXTURES} | {
    "OLMo-3 of another theta": lambda: random_olmo3(rope_theta=10_000.0),
    "7 experts": lambda: random_experts(7),
    "experts with names": lambda: random_experts(
        3,
        megatron_bar={"expert_names": ["anchor", "math", "code"], "merged_from": ["math", "code"]},
    ),
    "5 of 7 experts": lambda: random_experts(7, num_experts_per_tok=5),
    "1 of 2 experts": lambda: random_experts(2, num_experts_per_tok=1),
    "bf16 with fp32 routers": _bf16_with_fp32_routers,
    "fp16": lambda: random_olmo3().half(),
    "a vocabulary of one row more than a multiple": lambda: random_dense(vocab_size=129),
    "a vocabulary that needs no padding": lambda: random_dense(vocab_size=256),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_round_trip(make, tmp_path):
    make().save_pretrained(tmp_path / "source")
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    assert model_config_from_hf(tmp_path / "hf") == model_config_from_hf(tmp_path / "source")
    ours = load_file(tmp_path / "hf" / "model.safetensors")
    theirs = load_file(tmp_path / "source" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_the_card_of_olmo3_names_its_class_and_who_miscomputes_it(tmp_path):
    random_olmo3().save_pretrained(tmp_path / "source")
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Olmo3ForCausalLM" in card and "5.0 to 5.12" in card and "{" not in card
