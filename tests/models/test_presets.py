"""Presets have the published sizes: transformers' own models, on the meta device, are the judge."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.presets import PRESETS
from megatron_bar.training.groups import group_sizes

BILLIONS = {"olmo2-1b": 1.485, "olmo2-7b": 7.299, "olmo2-13b": 13.716, "olmo2-32b": 32.234}


def _meta_model(model):
    config = hf.hf_config(model, torch.bfloat16, {"pad_token_id": None})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config)
        )


@pytest.mark.parametrize("experts", [None, 2, 5])
@pytest.mark.parametrize("name", PRESETS)
def test_every_name_and_shape_is_transformers_own(name, experts):
    model = PRESETS[name] if experts is None else PRESETS[name].with_experts(experts)
    theirs = {key: tuple(p.shape) for key, p in _meta_model(model).state_dict().items()}
    ours = {key: shape for slot in slots(model)
            for key, shape in zip(slot.hf_names, slot.hf_shapes)}
    assert ours == theirs


@pytest.mark.parametrize("name", BILLIONS)
def test_parameter_counts_are_the_published_ones(name):
    assert sum(group_sizes(PRESETS[name]).values()) / 1e9 == pytest.approx(BILLIONS[name], abs=1e-3)


def test_the_merged_7b_is_the_published_25b():
    assert sum(group_sizes(PRESETS["olmo2-7b"].with_experts(5)).values()) / 1e9 == pytest.approx(
        24.61, abs=0.01
    )
