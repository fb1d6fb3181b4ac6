"""config.json of Hugging Face folders, in and out.

What a config.json asks for and this package doesn't compute is refused, never ignored. What differs
between classes of transformers is in models/families.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families import family_of, family_with
from megatron_bar.models.families.keys import flag, positive, whole
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_position_embeddings",
}
# What would change the model, and the one value of it that is computed here.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "auto_map": None,
}


def architecture(model: ModelConfig) -> str:
    """transformers' class for `model`. Raises BarError if there is none."""
    return family_of(model).hf_class(model).name


def model_config_from_hf(folder: Path) -> ModelConfig:
    """The model that `folder`/config.json describes.

    Raises BarError if the folder is missing, or is not a model that this package computes exactly.
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
    family, hf_class = family_with(config.get("model_type"))
    _check_class(config, hf_class.name)
    for key, only in {**_ONLY, **hf_class.only}.items():
        if config.get(key) not in (None, only):
            raise BarError(f"{key} {config[key]!r} is not supported (only {only!r} is)")
    given = {key: value for key, value in config.items() if value is not None}
    config = {**hf_class.defaults, **given}
    fields: dict[str, Any] = {ours: whole(config, theirs) for theirs, ours in _SIZES.items()}
    heads = fields["num_heads"]
    kv_heads = whole(config, "num_key_value_heads") if "num_key_value_heads" in config else heads
    if heads % kv_heads:
        raise BarError(f"num_attention_heads {heads} is no multiple of {kv_heads} kv heads")
    fields |= {
        "num_kv_heads": kv_heads,
        "family": family.name,
        "tied_embeddings": flag(config, "tie_word_embeddings"),
        "rms_norm_eps": positive("rms_norm_eps", config["rms_norm_eps"]),
    }
    return ModelConfig(**fields | hf_class.read(config))


def _check_class(config: dict[str, Any], expected: str) -> None:
    """Refuse weights of another head, or of none."""
    classes = config.get("architectures") or [expected]
    if classes != [expected]:
        raise BarError(f"architectures {classes!r} is not supported (only [{expected!r}] is)")


def hf_config(model: ModelConfig, dtype: torch.dtype, token_ids: dict[str, Any]) -> dict[str, Any]:
    """config.json for `model`, as both transformers 4.57 and 5 read it.

    `token_ids` holds bos, eos and pad, which the weights don't tell.

    Raises BarError if no class of transformers computes the model.
    """
    hf_class = family_of(model).hf_class(model)
    return {
        "architectures": [hf_class.name],
        "model_type": hf_class.model_type,
        "torch_dtype": str(dtype).removeprefix("torch."),
        # The first to read all of it. Without one, or with a later one of its line, 4.57.6 takes
        # OLMo's tokenizer for Mistral's and tells users to spoil it.
        "transformers_version": "4.57.0",
        **{theirs: getattr(model, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": model.num_kv_heads,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        **token_ids,
        **hf_class.write(model),
    }


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
