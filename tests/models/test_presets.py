"""Presets have the published sizes: transformers' own models, on the meta device, are the judge."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import check_same_shape
from megatron_bar.models.families import family_of
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.groups import group_sizes

BILLIONS = {
    "olmo2-1b": 1.485,
    "olmo2-7b": 7.299,
    "olmo2-13b": 13.716,
    "olmo2-32b": 32.234,
    "olmo3-7b": 7.298,
    "olmo3-32b": 32.233,
    "qwen3-0.6b": 0.596,
    "qwen3-1.7b": 1.721,
    "qwen3-4b": 4.022,
    "qwen3-4b-2507": 4.022,
    "qwen3-8b": 8.191,
    "qwen3-14b": 14.768,
    "qwen3-32b": 32.762,
}
# FlexOlmo 7x7B has 5 of its experts active, BAR's 5x7B all.
MIXTURES = {
    f"{name}-{experts}-experts": model.with_experts(experts, active)
    for name, model in PRESETS.items()
    if family_of(model).mixture is not None
    for experts, active in ((2, 2), (5, 5), (7, 5))
}


def _meta_model(model):
    config = hf.hf_config(model, torch.bfloat16, {"pad_token_id": None})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config)
        )


@pytest.mark.slow
@pytest.mark.parametrize("model", (PRESETS | MIXTURES).values(), ids=PRESETS | MIXTURES)
def test_every_name_and_shape_is_transformers_own(model):
    meta_model = _meta_model(model)
    # A tied head is not a parameter of its own.
    theirs = {key: tuple(p.shape) for key, p in meta_model.named_parameters()}
    assert meta_model.state_dict().keys() - theirs.keys() <= {"lm_head.weight"}
    ours = {
        key: shape for slot in slots(model) for key, shape in zip(slot.hf_names, slot.hf_shapes)
    }
    assert ours == theirs
    assert sum(group_sizes(model).values()) == meta_model.num_parameters()


@pytest.mark.parametrize("name", BILLIONS)
def test_parameter_counts_are_the_published_ones(name):
    assert sum(group_sizes(PRESETS[name]).values()) / 1e9 == pytest.approx(BILLIONS[name], abs=1e-3)


@pytest.mark.parametrize("experts, billions", [(5, 24.61), (7, 33.27)])
def test_the_mixtures_of_7b_are_the_published_25b_and_33b(experts, billions):
    model = PRESETS["olmo2-7b"].with_experts(experts)
    assert sum(group_sizes(model).values()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_models_of_different_shape_are_told_apart_by_their_fields():
    olmo2, olmo3 = PRESETS["olmo2-7b"], PRESETS["olmo3-7b"]
    shorter = replace(olmo3, window=replace(olmo3.window, size=7))
    for model, other, message in [
        (olmo2, replace(olmo2, rms_norm_eps=1e-5), "rms_norm_eps is 1e-06 and 1e-05"),
        (olmo3, shorter, "size is 4096 and 7"),
        (
            olmo2,
            replace(olmo3, vocab_size=olmo2.vocab_size),
            "window is None and SlidingWindow, yarn is None and Yarn, family is olmo2 and olmo3",
        ),
    ]:
        with pytest.raises(BarError) as refused:
            check_same_shape("a", model, "b", other)
        assert str(refused.value) == f"a and b are models of different shape: {message}"
        check_same_shape("a", model, "b", replace(model))
