"""Hugging Face folders: config.json in and out, and the files that go along.

What a config.json asks for and this package doesn't compute is refused, never ignored.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from megatron_bar.models.config import ModelConfig, Olmo3, Yarn
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json

# What a model needs besides its weights; carried along unchanged.
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
              "merges.txt", "chat_template.jinja", "generation_config.json")

_ARCHITECTURES = {
    "olmo2": "Olmo2ForCausalLM", "olmo3": "Olmo3ForCausalLM", "flex_olmo": "FlexOlmoForCausalLM",
}
_OTHER_OLMOS = {
    "olmo": "the first OLMo norms what a sub-layer takes in, without weights",
    "olmoe": "OLMoE norms what a sub-layer takes in, OLMo-2 and BAR what it puts out",
    "olmo_hybrid": "OLMo-hybrid has recurrent layers",
}
_SIZES = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
# What would change the model, and the one value of it that is computed here.
_ONLY = {
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
    "tie_word_embeddings": False, "clip_qkv": None, "quantization_config": None,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_YARN = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
         "beta_slow")
# What config.json says beyond transformers' keys, which it carries along: the experts' names, and
# the models that shared parameters are the mean of. Merging branches into the model needs both.
_OURS = "megatron_bar"
_OUR_KEYS = ("expert_names", "merged_from")
# What transformers 5 takes OLMo-3's sliding layers to have where rope_parameters doesn't tell.
_OLMO3_THETA = 500_000.0


def architecture(model: ModelConfig) -> str:
    """transformers' class for `model`."""
    return _ARCHITECTURES[_model_type(model)]


def _model_type(model: ModelConfig) -> str:
    if model.num_experts is None:
        return "olmo2" if model.olmo3 is None else "olmo3"
    if model.olmo3 is not None:
        raise BarError(
            "Hugging Face has no class for OLMo-3 with experts (FlexOlmo has no sliding window); "
            "the model can't be exported and stays a checkpoint"
        )
    return "flex_olmo"


def model_config_from_hf(folder: Path) -> ModelConfig:
    """The model that `folder`/config.json describes.

    Raises BarError if the folder is missing, or is not an OLMo-2, OLMo-3 or FlexOlmo model that
    this package computes exactly.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BarError(f"{folder} is not a folder; give a Hugging Face model folder")
    path = folder / "config.json"
    config = read_json(path)
    try:
        return _model_config(config)
    except BarError as error:
        raise BarError(f"{path}: {error}") from None


def _model_config(config: dict[str, Any]) -> ModelConfig:
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        reason = f" ({_OTHER_OLMOS[kind]})" if kind in _OTHER_OLMOS else ""
        raise BarError(
            f"model_type is {kind!r}{reason}; only {', '.join(_ARCHITECTURES)} are supported"
        )
    required = [*_SIZES, *(("num_experts", "num_experts_per_tok") if kind == "flex_olmo" else ())]
    for key in required:
        if config.get(key) is None:
            raise BarError(f"{key} is missing")
        if not isinstance(config[key], int | float) or config[key] <= 0:
            raise BarError(f"{key} {config[key]!r} is not a positive number")
    for key, only in _ONLY.items():
        if config.get(key, only) != only:
            raise BarError(f"{key} {config[key]!r} is not supported (only {only!r} is)")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, head_dim):
        raise BarError(f"head_dim {config['head_dim']} is not hidden_size / num_attention_heads")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise BarError(f"num_attention_heads {heads} is no multiple of {kv_heads} kv heads")
    theta, yarn = _rope(config, kind)
    experts = {}
    if kind == "flex_olmo":
        count, active = config["num_experts"], config["num_experts_per_tok"]
        if active > count:
            raise BarError(f"num_experts_per_tok {active} is more than num_experts {count}")
        renormalize = bool(config.get("norm_topk_prob"))
        if renormalize and active == 1:
            raise BarError("norm_topk_prob with num_experts_per_tok 1 gives every token's expert "
                           "weight 1, so that the router has nothing to learn from")
        experts = dict(num_experts=count, experts_per_token=active, renormalize=renormalize,
                       **_names(config, count))
    return ModelConfig(
        **{ours: config[theirs] for theirs, ours in _SIZES.items()},
        num_kv_heads=kv_heads,
        rope_theta=theta,
        olmo3=_olmo3(config, yarn) if kind == "olmo3" else _no_olmo3(config, yarn),
        **experts,
    )


def _names(config: dict[str, Any], num_experts: int) -> dict[str, tuple[str, ...]]:
    ours = config.get(_OURS, {})
    if not isinstance(ours, dict):
        raise BarError(f"{_OURS} {ours!r} is not a dict with {' and '.join(_OUR_KEYS)}")
    found = {key: ours[key] for key in _OUR_KEYS if ours.get(key) is not None}
    for key, names in found.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BarError(f"{_OURS}.{key} {names!r} is not a list of names")
    names = found.get("expert_names", range(num_experts))
    if len(set(names)) != num_experts:
        raise BarError(f"{_OURS}.expert_names {names!r} doesn't name each of {num_experts} experts")
    return {key: tuple(value) for key, value in found.items()}


def _no_olmo3(config: dict[str, Any], yarn: Yarn | None) -> None:
    if yarn is not None:
        raise BarError("rope_type 'yarn' is not supported (only OLMo-3 has it)")
    if config.get("sliding_window") is not None or _SLIDING in (config.get("layer_types") or ()):
        raise BarError("a sliding window is not supported (only OLMo-3 has one)")


def _olmo3(config: dict[str, Any], yarn: Yarn | None) -> Olmo3:
    layers = config["num_hidden_layers"]
    # transformers' default: each fourth layer sees all.
    types = config.get("layer_types") or [_FULL if i % 4 == 3 else _SLIDING for i in range(layers)]
    if len(types) != layers or set(types) - {_SLIDING, _FULL}:
        raise BarError(f"layer_types is not one of {_SLIDING}, {_FULL} for each of {layers} layers")
    if not config.get("sliding_window"):
        raise BarError("sliding_window is missing")
    full = tuple(i for i, kind in enumerate(types) if kind == _FULL)
    return Olmo3(config["sliding_window"], full, yarn)


def _rope(config: dict[str, Any], kind: str) -> tuple[float, Yarn | None]:
    """RoPE's base, and the scaling of the layers that see all positions.

    transformers 4 keeps them in rope_theta and rope_scaling, where OLMo-3's scaling is understood
    to leave sliding layers alone. transformers 5 keeps them in rope_parameters, since 5.13 by layer
    type for OLMo-3. 5.0 to 5.12 scaled OLMo-3's sliding layers too (huggingface/transformers
    #45945), so a rope_parameters for all layers at once has no one meaning.
    """
    parameters = config.get("rope_parameters") or {}
    by_type = kind == "olmo3" and bool({_SLIDING, _FULL} & set(parameters))
    sliding = (parameters.get(_SLIDING) or {}) if by_type else parameters
    full = (parameters.get(_FULL) or {}) if by_type else parameters
    full = full | (config.get("rope_scaling") or {})
    if kind == "olmo3" and _rope_type(sliding) != "default":
        raise BarError(
            "rope_parameters scales RoPE in sliding layers, as transformers 5.0 to 5.12 did by "
            "mistake; OLMo-3 scales full_attention alone, so give one dict for each layer type"
        )
    thetas = {part.get("rope_theta", config.get("rope_theta")) for part in (sliding, full)}
    if None in thetas:
        raise BarError("rope_theta is missing")
    if len(thetas) > 1:
        raise BarError(f"rope_theta differs between layers: {sorted(thetas)}")
    return float(thetas.pop()), _yarn(full, config["max_position_embeddings"])


def _rope_type(rope: dict[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _yarn(rope: dict[str, Any], max_position_embeddings: int) -> Yarn | None:
    kind = _rope_type(rope)
    if kind not in ("default", "yarn"):
        raise BarError(f"rope_type {kind!r} is not supported (only 'default', and OLMo-3's 'yarn')")
    given = {key: value for key, value in rope.items() if value is not None}
    known = {"rope_type", "type", "rope_theta", *(_YARN if kind == "yarn" else ())}
    if unknown := sorted(set(given) - known):
        raise BarError(f"{unknown[0]} of rope_type {kind!r} is not supported")
    if kind == "default":
        return None
    if "factor" not in given:
        raise BarError("factor of rope_type 'yarn' is missing")
    settings = {key: given[key] for key in _YARN if key in given}
    settings.setdefault("original_max_position_embeddings", max_position_embeddings)
    settings.setdefault("attention_factor", 0.1 * math.log(max(given["factor"], 1.0)) + 1.0)
    return Yarn(**settings)


def hf_config(model: ModelConfig, dtype: torch.dtype, token_ids: dict[str, Any]) -> dict[str, Any]:
    """config.json for `model`, as both transformers 4.57 and 5 read it.

    `token_ids` holds bos, eos and pad, which the weights don't tell.

    Raises BarError for OLMo-3 with experts, which no class of transformers computes.
    """
    config: dict[str, Any] = {
        "architectures": [architecture(model)], "model_type": _model_type(model),
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{theirs: getattr(model, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": model.num_kv_heads,
        "rope_theta": model.rope_theta,
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": False, "initializer_range": 0.02, "use_cache": True,
        **token_ids,
    }
    if model.num_experts is not None:
        config |= {
            "num_experts": model.num_experts, "num_experts_per_tok": model.experts_per_token,
            "norm_topk_prob": model.renormalize, "output_router_logits": False,
            "router_aux_loss_coef": 0.0,
        }
        ours = {key: list(names) for key in _OUR_KEYS
                if (names := getattr(model, key)) is not None}
        config |= {_OURS: ours} if ours else {}
    if model.olmo3 is not None:
        config |= _olmo3_config(model, model.olmo3)
    return config


def _olmo3_config(model: ModelConfig, olmo3: Olmo3) -> dict[str, Any]:
    # As the published checkpoints have it, which most software reads.
    config: dict[str, Any] = {
        "sliding_window": olmo3.sliding_window,
        "layer_types": [
            _FULL if layer in olmo3.full_attention_layers else _SLIDING
            for layer in range(model.num_layers)
        ],
    }
    yarn = olmo3.yarn and {"rope_type": "yarn", **{key: getattr(olmo3.yarn, key) for key in _YARN}}
    if yarn:
        config["rope_scaling"] = yarn
    if model.rope_theta != _OLMO3_THETA:  # which transformers 5 wants said by layer type
        theta = {"rope_theta": model.rope_theta}
        config["rope_parameters"] = {
            _SLIDING: {"rope_type": "default"} | theta,
            _FULL: (yarn or {"rope_type": "default"}) | theta,
        }
    return config


def stored_type(folder: Path) -> torch.dtype:
    """The type that `folder`/config.json says most weights have; float32 where it says none."""
    config = read_json(Path(folder) / "config.json")
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and generation config as far as `source` has them."""
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(target) / name)
