"""config.json: what it describes is computed, or refused in one line that says why."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig

from megatron_bar.checkpoints.hf import hf_config, model_config_from_hf
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from tests.models_hf import random_dense, random_experts, random_model, random_olmo3

MODELS = PRESETS | {
    "FlexOlmo 7x7B": PRESETS["olmo2-7b"].with_experts(7, 5),
    "BAR 5x7B": PRESETS["olmo2-7b"].with_experts(5),
    "experts with names": dataclasses.replace(
        PRESETS["olmo2-1b"].with_experts(3),
        expert_names=("anchor", "math", "code"),
        merged_from=("anchor", "math", "code"),
    ),
    "Qwen3-30B-A3B": dataclasses.replace(
        PRESETS["qwen3-0.6b"].with_experts(128, 8),
        hidden_size=2048,
        ffn_hidden_size=768,
        num_layers=48,
        num_heads=32,
        num_kv_heads=4,
        tied_embeddings=False,
        renormalize=True,
    ),
    "BAR on Qwen3": PRESETS["qwen3-4b"].with_experts(5),
    "OLMo-3 of another theta": dataclasses.replace(PRESETS["olmo3-7b"], rope_theta=10_000.0),
    "OLMo-3 without YaRN": dataclasses.replace(PRESETS["olmo3-7b"], yarn=None),
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}
PLAIN = {"rope_type": "default", "rope_theta": 500_000.0}


@pytest.fixture(scope="module")
def configs():
    models = {
        "olmo2": random_dense(),
        "olmo3": random_olmo3(),
        "flex_olmo": random_experts(3),
        "qwen3": random_model("Qwen3"),
        "qwen3_moe": random_model("Qwen3-MoE"),
    }
    return {name: model.config.to_dict() for name, model in models.items()}


def _read(config, folder) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return model_config_from_hf(folder)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_again(name, tmp_path):
    config = hf_config(MODELS[name], torch.bfloat16, {})
    assert _read(config, tmp_path) == MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_makes_of_it_is_the_same_model(name, tmp_path):
    config = hf_config(MODELS[name], torch.bfloat16, {})
    theirs = AutoConfig.for_model(config.pop("model_type"), **config)
    assert _read(theirs.to_dict(), tmp_path) == MODELS[name]


def test_a_saved_checkpoint_config_is_loaded_again(tmp_path):
    for name, model in MODELS.items():
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
        assert ModelConfig.load(tmp_path / name) == model


def _first_version(**fields):
    """A model.json as it was before there were families."""
    return {
        "vocab_size": 331,
        "hidden_size": 48,
        "ffn_hidden_size": 80,
        "num_layers": 4,
        "num_heads": 6,
        "num_kv_heads": 2,
        "max_position_embeddings": 64,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-06,
        "num_experts": None,
        "experts_per_token": None,
        "renormalize": False,
        "expert_names": None,
        "olmo3": None,
        "merged_from": None,
        **fields,
    }


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("olmo2", {}),
        (
            "olmo3",
            {
                "olmo3": {
                    "sliding_window": 5,
                    "full_attention_layers": [3],
                    "yarn": {
                        "factor": 8.0,
                        "original_max_position_embeddings": 8,
                        "attention_factor": 1.2079441541679836,
                        "beta_fast": 32.0,
                        "beta_slow": 1.0,
                    },
                }
            },
        ),
        ("flex_olmo", {"num_experts": 3, "experts_per_token": 3}),
    ],
)
def test_a_checkpoint_config_of_the_first_version_is_the_same_model(
    kind, fields, configs, tmp_path
):
    (tmp_path / "model.json").write_text(json.dumps(_first_version(**fields)))
    assert ModelConfig.load(tmp_path) == _read(configs[kind], tmp_path)


def test_names_and_plain_rope_of_the_first_version_are_kept(tmp_path):
    """Of a branch of OLMo-3 without YaRN."""
    (tmp_path / "model.json").write_text(
        json.dumps(
            _first_version(
                num_experts=2,
                experts_per_token=2,
                expert_names=["anchor", "math"],
                merged_from=[],
                olmo3={"sliding_window": 5, "full_attention_layers": [3], "yarn": None},
            )
        )
    )
    model = ModelConfig.load(tmp_path)
    assert model.family == "olmo3" and model.yarn is None and model.window_of(2) == 5
    assert model.expert_names == ("anchor", "math") and model.merged_from == ()


@pytest.mark.parametrize("fields", [{"brand_new": 3}, {"olmo3": {"sliding_window": 5}}])
def test_a_checkpoint_config_of_another_version_is_refused(fields, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(_first_version(**fields)))
    with pytest.raises(BarError, match=r"model\.json was written by another version"):
        ModelConfig.load(tmp_path)


REFUSED = {
    "OLMo 1": ("olmo2", {"model_type": "olmo"}, "is 'olmo' (the first OLMo norms"),
    "OLMoE": ("flex_olmo", {"model_type": "olmoe"}, "is 'olmoe'; only olmo2"),
    "sliding Qwen3": ("qwen3", {"use_sliding_window": True}, "use_sliding_window True"),
    "a sliding layer of Qwen3": (
        "qwen3",
        {"layer_types": ["sliding_attention"] * 4},
        "a sliding window is not",
    ),
    "YaRN of Qwen3": ("qwen3", {"rope_scaling": YARN}, "rope_type 'yarn' is not"),
    "biases of Qwen3": ("qwen3", {"attention_bias": True}, "attention_bias True"),
    "Qwen3's dense layers": ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers [0]"),
    "every second layer": ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 2"),
    "tied as text": ("qwen3", {"tie_word_embeddings": "yes"}, "neither true nor false"),
    "hybrid": ("olmo3", {"model_type": "olmo_hybrid"}, "has recurrent layers"),
    "another family": ("olmo2", {"model_type": "llama"}, "only olmo2, flex_olmo, olmo3, qwen3"),
    "a list for a type": ("olmo2", {"model_type": ["olmo2"]}, "model_type is ['olmo2']; only"),
    "no type": ("olmo2", {"model_type": None}, "model_type is None"),
    "size missing": ("olmo2", {"intermediate_size": None}, "intermediate_size is missing"),
    "experts missing": ("flex_olmo", {"num_experts": None}, "num_experts is missing"),
    "k missing": ("flex_olmo", {"num_experts_per_tok": None}, "num_experts_per_tok is missing"),
    "k too large": ("flex_olmo", {"num_experts_per_tok": 4}, "4 is more than num_experts 3"),
    "k too small": ("flex_olmo", {"num_experts_per_tok": 0}, "0 is not a positive number"),
    "no number": ("olmo2", {"num_hidden_layers": "4"}, "num_hidden_layers '4' is not a positive"),
    "heads": ("olmo2", {"num_key_value_heads": 4}, "6 is no multiple of 4 kv heads"),
    "renormalised": (
        "flex_olmo",
        {"norm_topk_prob": True, "num_experts_per_tok": 1},
        "the router has nothing to learn from",
    ),
    "names for other experts": (
        "flex_olmo",
        {"megatron_bar": {"expert_names": ["a", "b"]}},
        "doesn't name each of 3 experts",
    ),
    "a name twice": (
        "flex_olmo",
        {"megatron_bar": {"expert_names": ["a", "b", "b"]}},
        "doesn't name each of 3 experts",
    ),
    "no names": ("flex_olmo", {"megatron_bar": {"merged_from": [1]}}, "[1] is not a list of names"),
    "our key of another": ("flex_olmo", {"megatron_bar": 1}, "megatron_bar 1 is not a dict"),
    "bias": ("olmo2", {"attention_bias": True}, "attention_bias True"),
    "tied": ("olmo3", {"tie_word_embeddings": True}, "tie_word_embeddings True"),
    "dropout": ("olmo2", {"attention_dropout": 0.1}, "attention_dropout 0.1"),
    "clipping": ("olmo2", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
    "activation": ("olmo2", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "quantized": ("olmo3", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "head width": ("olmo2", {"head_dim": 32}, "head_dim 32"),
    "window of OLMo-2": ("olmo2", {"sliding_window": 64}, "a sliding window is not supported"),
    "sliding FlexOlmo": (
        "flex_olmo",
        {"layer_types": ["sliding_attention"] * 4},
        "a sliding window is not",
    ),
    "YaRN of OLMo-2": ("olmo2", {"rope_scaling": YARN}, "rope_type 'yarn' is not"),
    "YaRN of FlexOlmo": ("flex_olmo", {"rope_parameters": PLAIN | YARN}, "rope_type 'yarn'"),
    "linear RoPE": ("olmo2", {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
    "Llama's RoPE": ("olmo3", {"rope_scaling": {"rope_type": "llama3"}}, "'llama3'"),
    "mscale": ("olmo3", {"rope_scaling": YARN | {"mscale": 0.7}}, "mscale of rope_type 'yarn'"),
    "untruncated": ("olmo3", {"rope_scaling": YARN | {"truncate": False}}, "truncate"),
    "partial RoPE": (
        "olmo2",
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "factor missing": ("olmo3", {"rope_scaling": {"rope_type": "yarn"}}, "factor of rope_type"),
    "theta of OLMo-3": ("olmo3", {"rope_theta": None}, "transformers 4 and 5 take different"),
    "theta twice": (
        "olmo2",
        {"rope_parameters": PLAIN | {"rope_theta": 1e4}},
        "rope_theta is 500000.0 and within rope_parameters 10000.0",
    ),
    "theta as text": ("olmo2", {"rope_theta": "5e5"}, "rope_theta '5e5' is not a positive number"),
    "two scalings": (
        "olmo3",
        {
            "rope_parameters": {
                "sliding_attention": PLAIN,
                "full_attention": PLAIN | YARN | {"factor": 4.0},
            }
        },
        "factor is 4.0 in rope_parameters and 8.0 in rope_scaling",
    ),
    "a list for RoPE": ("olmo3", {"rope_parameters": [PLAIN]}, "is not a dict"),
    "a list for a layer type": (
        "olmo3",
        {"rope_parameters": {"full_attention": [PLAIN]}},
        "full_attention [{",
    ),
    "a factor as text": ("olmo3", {"rope_scaling": YARN | {"factor": "8"}}, "factor '8' is not a"),
    "partial RoPE above": ("olmo2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "half a number": ("olmo2", {"hidden_size": 48.5}, "hidden_size 48.5 is not a whole number"),
    "true for a number": ("olmo2", {"num_hidden_layers": True}, "True is not a positive number"),
    "infinity": ("olmo2", {"rms_norm_eps": float("inf")}, "rms_norm_eps inf is not a positive"),
    "heads as text": ("olmo2", {"num_key_value_heads": "2"}, "'2' is not a positive number"),
    "text for a flag": ("flex_olmo", {"norm_topk_prob": "false"}, "neither true nor false"),
    "another head": (
        "olmo2",
        {"architectures": ["Olmo2ForSequenceClassification"]},
        "architectures ['Olmo2ForSequenceClassification'] is not supported",
    ),
    "code of its own": ("olmo2", {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}}, "auto_map"),
    "no list of layer types": ("olmo3", {"layer_types": {"0": "full_attention"}}, "layer_types is"),
    "two thetas": (
        "olmo3",
        {
            "rope_parameters": {
                "sliding_attention": PLAIN | {"rope_theta": 1e4},
                "full_attention": PLAIN,
            }
        },
        "rope_theta differs between layers: [10000.0, 500000.0]",
    ),
    "YaRN on sliding layers": (
        "olmo3",
        {"rope_parameters": PLAIN | YARN, "rope_scaling": None},
        "transformers 5.0 to 5.12",
    ),
    "layer types": ("olmo3", {"layer_types": ["chunked_attention"] * 4}, "layer_types is not"),
    "too few layer types": ("olmo3", {"layer_types": ["full_attention"] * 3}, "layer_types is not"),
    "window missing": ("olmo3", {"sliding_window": None}, "sliding_window is missing"),
}


@pytest.mark.parametrize("kind, changes, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused(kind, changes, message, configs, tmp_path):
    with pytest.raises(BarError) as raised:
        _read(configs[kind] | changes, tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'config.json'}: ")


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "it holds a list, not a dict"),
        ("3", "it holds a int"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("1" * 5000, "is not valid JSON"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "is a Git LFS pointer, not the",
        ),
    ],
    ids=["list", "number", "cut", "deep", "long", "pointer"],
)
def test_a_file_that_is_no_config_is_refused(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BarError) as raised:
        model_config_from_hf(tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))


def test_numbers_and_marks_of_other_writers_are_read(configs, tmp_path):
    expected = _read(configs["olmo2"], tmp_path)
    floats = {"hidden_size": 48.0, "num_key_value_heads": 2.0, "rope_theta": 500_000}
    assert _read(configs["olmo2"] | floats, tmp_path) == expected
    assert _read(configs["olmo2"] | {"tie_word_embeddings": None}, tmp_path) == expected
    with_mark = "\ufeff" + json.dumps(configs["olmo2"])
    (tmp_path / "config.json").write_text(with_mark, encoding="utf-8")
    assert model_config_from_hf(tmp_path) == expected


def test_experts_are_counted_by_either_name(configs, tmp_path):
    config = dict(configs["qwen3_moe"])
    expected = _read(config, tmp_path)
    config["num_local_experts"] = config.pop("num_experts")
    assert _read(config, tmp_path) == expected and expected.num_experts == 2


@pytest.mark.parametrize("kind", ["olmo2", "olmo3", "flex_olmo", "qwen3", "qwen3_moe"])
def test_what_old_configs_leave_out_is_the_class_s_default(kind, configs, tmp_path):
    left_out = {
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_scaling",
        *(["rope_theta"] if kind != "olmo3" else []),
    }
    bare = {key: value for key, value in configs[kind].items() if key not in left_out}
    theirs = AutoConfig.for_model(**bare)
    model = _read(bare, tmp_path)
    assert model.rms_norm_eps == theirs.rms_norm_eps
    assert model.max_position_embeddings == theirs.max_position_embeddings
    assert model.rope_theta == theirs.rope_theta
    assert model.head_dim == getattr(theirs, "head_dim", model.hidden_size // model.num_heads)


def _without_rope(config):
    return {key: value for key, value in config.items() if not key.startswith("rope_")}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500_000.0, "rope_scaling": YARN},
        {
            "rope_theta": 500_000.0,
            "rope_scaling": YARN
            | {"type": "yarn", "beta_fast": 32, "attention_factor": 1.2079441541679836},
        },
        {"rope_parameters": {"sliding_attention": PLAIN, "full_attention": PLAIN | YARN}},
    ],
    ids=["transformers 4", "all keys", "transformers 5"],
)
def test_olmo3_rope_is_read_from_every_form(rope, configs, tmp_path):
    model = _read(_without_rope(configs["olmo3"]) | rope, tmp_path)
    assert model.rope_theta == 500_000.0
    assert model.yarn.factor == 8.0
    assert model.yarn.attention_factor == pytest.approx(1.2079441541679836, rel=1e-15)
    assert model.window.full_layers == (3,) and model.window.size == 5


def test_olmo2_rope_is_read_from_both_forms(configs, tmp_path):
    bare = _without_rope(configs["olmo2"])
    old = _read(bare | {"rope_theta": 10_000, "rope_scaling": None}, tmp_path)
    new = _read(bare | {"rope_parameters": PLAIN | {"rope_theta": 10_000}}, tmp_path)
    assert old == new and old.rope_theta == 10_000.0
