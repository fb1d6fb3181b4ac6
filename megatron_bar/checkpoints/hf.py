"""config.json of Hugging Face folders, in and out.

What a config.json asks for and this package doesn't compute is refused, never ignored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from megatron_bar.models.config import ModelConfig, Olmo3, Yarn
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json

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
}
# transformers' defaults of what old configs leave out.
_DEFAULTS = {
    "olmo2": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    "olmo3": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    "flex_olmo": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
}
# Of OLMo-3 transformers 4 and 5 have different ones.
_DEFAULT_THETAS = {"olmo2": 10_000.0, "flex_olmo": 500_000.0}
# What would change the model, and the one value of it that is computed here.
_ONLY = {
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
    "tie_word_embeddings": False, "clip_qkv": None, "quantization_config": None,
    "partial_rotary_factor": 1.0, "auto_map": None,
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
        if not isinstance(config, dict):
            raise BarError(f"it holds a {type(config).__name__}, not a dict")
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
    _check_class(config, _ARCHITECTURES[kind])
    for key, only in _ONLY.items():
        if config.get(key) not in (None, only):
            raise BarError(f"{key} {config[key]!r} is not supported (only {only!r} is)")
    config = _DEFAULTS[kind] | {key: value for key, value in config.items() if value is not None}
    sizes: dict[str, Any] = {ours: _whole(config, theirs) for theirs, ours in _SIZES.items()}
    hidden, heads = sizes["hidden_size"], sizes["num_heads"]
    if "head_dim" in config and _whole(config, "head_dim") * heads != hidden:
        raise BarError(f"head_dim {config['head_dim']} is not hidden_size / num_attention_heads")
    kv_heads = _whole(config, "num_key_value_heads") if "num_key_value_heads" in config else heads
    if heads % kv_heads:
        raise BarError(f"num_attention_heads {heads} is no multiple of {kv_heads} kv heads")
    theta, yarn = _rope(config, kind)
    experts = {}
    if kind == "flex_olmo":
        count, active = (_whole(config, key) for key in ("num_experts", "num_experts_per_tok"))
        if active > count:
            raise BarError(f"num_experts_per_tok {active} is more than num_experts {count}")
        renormalize = config.get("norm_topk_prob", False)
        if not isinstance(renormalize, bool):
            raise BarError(f"norm_topk_prob {renormalize!r} is neither true nor false")
        if renormalize and active == 1:
            raise BarError("norm_topk_prob with num_experts_per_tok 1 gives every token's expert "
                           "weight 1, so that the router has nothing to learn from")
        experts = dict(num_experts=count, experts_per_token=active, renormalize=renormalize,
                       **_names(config, count))
    return ModelConfig(
        **sizes, num_kv_heads=kv_heads,
        rms_norm_eps=_positive("rms_norm_eps", config["rms_norm_eps"]), rope_theta=theta,
        olmo3=_olmo3(config, yarn) if kind == "olmo3" else _no_olmo3(config, yarn),
        **experts,
    )


def _check_class(config: dict[str, Any], expected: str) -> None:
    """Refuse weights of another head, or of none."""
    classes = config.get("architectures") or [expected]
    if classes != [expected]:
        raise BarError(f"architectures {classes!r} is not supported (only [{expected!r}] is)")


def _positive(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise BarError(f"{key} {value!r} is not a positive number")
    return float(value)


def _whole(config: dict[str, Any], key: str) -> int:
    if key not in config:
        raise BarError(f"{key} is missing")
    if not _positive(key, config[key]).is_integer():
        raise BarError(f"{key} {config[key]!r} is not a whole number")
    return int(config[key])


def _object(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """What `holder` has under `key`, without the keys that are null; empty if it has nothing."""
    value = holder.get(key) or {}
    if not isinstance(value, dict):
        raise BarError(f"{key} {value!r} is not a dict")
    return {name: inner for name, inner in value.items() if inner is not None}


def _names(config: dict[str, Any], num_experts: int) -> dict[str, tuple[str, ...]]:
    ours = _object(config, _OURS)
    found = {key: ours[key] for key in _OUR_KEYS if key in ours}
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
    layers = _whole(config, "num_hidden_layers")
    # transformers' default: each fourth layer sees all.
    types = config.get("layer_types") or [_FULL if i % 4 == 3 else _SLIDING for i in range(layers)]
    if (not isinstance(types, list) or len(types) != layers
            or any(kind not in (_SLIDING, _FULL) for kind in types)):
        raise BarError(f"layer_types is not one of {_SLIDING}, {_FULL} for each of {layers} layers")
    full = tuple(i for i, kind in enumerate(types) if kind == _FULL)
    return Olmo3(_whole(config, "sliding_window"), full, yarn)


def _rope(config: dict[str, Any], kind: str) -> tuple[float, Yarn | None]:
    """RoPE's base, and the scaling of the layers that see all positions.

    transformers 4 keeps them in rope_theta and rope_scaling, where OLMo-3's scaling is understood
    to leave sliding layers alone. transformers 5 keeps them in rope_parameters, since 5.13 by layer
    type for OLMo-3. 5.0 to 5.12 scaled OLMo-3's sliding layers too (huggingface/transformers
    #45945), so a rope_parameters for all layers at once has no one meaning.
    """
    parameters, scaling = _object(config, "rope_parameters"), _object(config, "rope_scaling")
    by_type = kind == "olmo3" and bool({_SLIDING, _FULL} & set(parameters))
    sliding = _object(parameters, _SLIDING) if by_type else parameters
    full = _object(parameters, _FULL) if by_type else parameters
    theta = _theta(config, kind, sliding, full)
    for key in full.keys() & scaling.keys():
        if full[key] != scaling[key]:
            raise BarError(f"{key} is {full[key]!r} in rope_parameters and {scaling[key]!r} in "
                           "rope_scaling; remove the wrong one")
    full = full | scaling
    if kind == "olmo3" and _rope_type(sliding) != "default":
        raise BarError(
            "rope_parameters scales RoPE in sliding layers, as transformers 5.0 to 5.12 did by "
            "mistake; OLMo-3 scales full_attention alone, so give one dict for each layer type"
        )
    return theta, _yarn(full, _whole(config, "max_position_embeddings"))


def _theta(config: dict[str, Any], kind: str, *parts: dict[str, Any]) -> float:
    """The one rope_theta that config.json and the parts of its rope_parameters tell."""
    above = config.get("rope_theta")
    told = [part.get("rope_theta", above) for part in parts]
    if told == [None] * len(parts) and kind in _DEFAULT_THETAS:
        return _DEFAULT_THETAS[kind]
    if None in told:
        raise BarError("rope_theta is missing, and transformers 4 and 5 take different values then")
    thetas = {_positive("rope_theta", theta) for theta in told}
    if len(thetas) > 1:
        raise BarError(f"rope_theta differs between layers: {sorted(thetas)}")
    theta = thetas.pop()
    if above not in (None, theta):
        raise BarError(f"rope_theta is {above!r} and within rope_parameters {theta!r}; remove the "
                       "wrong one")
    return theta


def _rope_type(rope: dict[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _yarn(rope: dict[str, Any], max_position_embeddings: int) -> Yarn | None:
    kind = _rope_type(rope)
    if kind not in ("default", "yarn"):
        raise BarError(f"rope_type {kind!r} is not supported (only 'default', and OLMo-3's 'yarn')")
    known = {"rope_type", "type", "rope_theta", *(_YARN if kind == "yarn" else ())}
    if unknown := sorted(set(rope) - known):
        raise BarError(f"{unknown[0]} of rope_type {kind!r} is not supported")
    if kind == "default":
        return None
    if "factor" not in rope:
        raise BarError("factor of rope_type 'yarn' is missing")
    settings: dict[str, Any] = {key: _positive(key, rope[key]) for key in _YARN if key in rope}
    settings.setdefault("attention_factor", 0.1 * math.log(max(settings["factor"], 1.0)) + 1.0)
    original = "original_max_position_embeddings"
    settings[original] = _whole({original: max_position_embeddings} | rope, original)
    return Yarn(**settings)


def hf_config(model: ModelConfig, dtype: torch.dtype, token_ids: dict[str, Any]) -> dict[str, Any]:
    """config.json for `model`, as both transformers 4.57 and 5 read it.

    `token_ids` holds bos, eos and pad, which the weights don't tell.

    Raises BarError for OLMo-3 with experts, which no class of transformers computes.
    """
    config: dict[str, Any] = {
        "architectures": [architecture(model)], "model_type": _model_type(model),
        "torch_dtype": str(dtype).removeprefix("torch."),
        # The first to read all of it. Without one, or with a later one of its line, 4.57.6 takes
        # OLMo's tokenizer for Mistral's and tells users to spoil it.
        "transformers_version": "4.57.0",
        **{theirs: getattr(model, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": model.num_kv_heads, "rms_norm_eps": model.rms_norm_eps,
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
    """The type that `folder`/config.json says most weights have; float32 where it says none.

    Raises BarError for a word that is no type.
    """
    config = read_json(Path(folder) / "config.json")
    word = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, str(word).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise BarError(f"{folder}/config.json: torch_dtype {word!r} is no number type")
    return found
