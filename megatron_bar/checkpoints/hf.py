"""Hugging Face folders: config.json, safetensors in and out, the files that go along."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9
# What a model needs besides its weights; carried along unchanged.
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
              "merges.txt", "chat_template.jinja", "generation_config.json")

_DTYPE_NAMES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
                "BF16": torch.bfloat16}
_NAMES_OF_DTYPES = {dtype: name for name, dtype in _DTYPE_NAMES.items()}
_REQUIRED = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}


def model_config_from_hf(folder: Path) -> ModelConfig:
    """The model that `folder`/config.json describes.

    Raises BarError if the folder is missing, or is not an OLMo-2 or FlexOlmo model that this
    package computes exactly.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BarError(f"{folder} is not a folder; give a Hugging Face model folder")
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in ("olmo2", "flex_olmo"):
        raise BarError(f"{path}: model_type is {kind!r}; only olmo2 and flex_olmo are supported")
    if missing := sorted(set(_REQUIRED) - set(config)):
        raise BarError(f"{path}: {missing[0]} is missing")
    # transformers 5 keeps RoPE in rope_parameters, 4 in rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    rope_kind = rope.get("rope_type") or scaling.get("rope_type") or "default"
    for key, value, supported in (
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", config.get("attention_bias", False), False),
        ("tie_word_embeddings", config.get("tie_word_embeddings", False), False),
        ("norm_topk_prob", config.get("norm_topk_prob", False), False),
        ("rope_type", rope_kind, "default"),
    ):
        if value != supported:
            raise BarError(f"{path}: {key} {value!r} is not supported (only {supported!r} is)")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise BarError(f"{path}: rope_theta is missing")
    num_experts = config["num_experts"] if kind == "flex_olmo" else None
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, head_dim):
        raise BarError(f"{path}: head_dim {config['head_dim']} is not hidden_size / heads")
    return ModelConfig(
        **{ours: config[theirs] for theirs, ours in _REQUIRED.items()},
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        rope_theta=float(theta),
        num_experts=num_experts,
        experts_per_token=config["num_experts_per_tok"] if num_experts else None,
    )


def hf_config(model: ModelConfig, dtype: torch.dtype, token_ids: dict[str, Any]) -> dict[str, Any]:
    """config.json for `model`, as both transformers 4.57 and 5 read it.

    `token_ids` holds bos, eos and pad, which the weights don't tell.
    """
    config: dict[str, Any] = {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2",
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{theirs: getattr(model, ours) for theirs, ours in _REQUIRED.items()},
        "num_key_value_heads": model.num_kv_heads,
        "rope_theta": model.rope_theta,
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": False, "initializer_range": 0.02, "use_cache": True,
        **token_ids,
    }
    if model.num_experts is not None:
        config |= {
            "architectures": ["FlexOlmoForCausalLM"], "model_type": "flex_olmo",
            "num_experts": model.num_experts, "num_experts_per_tok": model.experts_per_token,
            "norm_topk_prob": False, "output_router_logits": False, "router_aux_loss_coef": 0.0,
        }
    return config


class HfReader:
    """Tensors of a Hugging Face folder by name, read from memory-mapped safetensors.

    Raises BarError for a missing, truncated or inconsistent file, naming file and tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        index = self.folder / INDEX
        if index.is_file():
            self._file_of = dict(read_json(index)["weight_map"])
        elif (self.folder / SINGLE).is_file():
            with self._open(SINGLE) as file:
                self._file_of = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise BarError(f"{folder} holds neither {SINGLE} nor {INDEX}")

    def _open(self, file_name: str):
        path = self.folder / file_name
        try:
            return safe_open(path, framework="pt")
        except FileNotFoundError:
            raise BarError(f"{path} is missing, but {INDEX} names it") from None
        except (SafetensorError, OSError) as error:
            raise BarError(f"{path} is not a whole safetensors file: {error}") from None

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def check(self, name: str, shape: Sequence[int]) -> torch.dtype:
        """The tensor's dtype. Raises BarError unless it is there and has `shape`."""
        if name not in self._file_of:
            raise BarError(f"{self.folder}: tensor {name} is missing")
        path = self.folder / self._file_of[name]
        with self._open(self._file_of[name]) as file:
            if name not in set(file.keys()):
                raise BarError(f"{path}: tensor {name} is missing, but {INDEX} says it is here")
            view = file.get_slice(name)
            if tuple(view.get_shape()) != tuple(shape):
                raise BarError(
                    f"{path}: tensor {name} has shape {tuple(view.get_shape())}, "
                    f"config.json says {tuple(shape)}"
                )
            if view.get_dtype() not in _DTYPE_NAMES:
                raise BarError(f"{path}: tensor {name} has dtype {view.get_dtype()}")
            return _DTYPE_NAMES[view.get_dtype()]

    def read(self, name: str) -> torch.Tensor:
        with self._open(self._file_of[name]) as file:
            return file.get_tensor(name)


@dataclass(frozen=True)
class LazyTensors:
    """Some Hugging Face tensors that are made together, when they are written."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    make: Callable[[], list[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        numbers = sum(torch.Size(shape).numel() for shape in self.shapes)
        return numbers * self.dtype.itemsize


def write_safetensors(folder: Path, groups: Sequence[LazyTensors], shard_bytes: int) -> None:
    """Write `groups` as model.safetensors, or as shards of about `shard_bytes` with an index.

    safetensors' own writer wants all tensors of a file at once. A file is a header, which shapes
    and dtypes determine, and then the tensors' bytes, so they can be made and written in turn.
    """
    shards = list(_shards(groups, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        one_file = len(shards) == 1
        name = SINGLE if one_file else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(Path(folder) / name, shard)
        weight_map |= {tensor: name for group in shard for tensor in group.names}
    if len(shards) > 1:
        total = sum(group.nbytes for group in groups)
        write_json(Path(folder) / INDEX,
                   {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(groups: Sequence[LazyTensors], shard_bytes: int) -> Iterator[list[LazyTensors]]:
    shard: list[LazyTensors] = []
    size = 0
    for group in groups:
        if shard and size + group.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(group)
        size += group.nbytes
    yield shard


def _write_file(path: Path, groups: Sequence[LazyTensors]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for group in groups:
        for name, shape in zip(group.names, group.shapes):
            start, end = end, end + torch.Size(shape).numel() * group.dtype.itemsize
            header[name] = {"dtype": _NAMES_OF_DTYPES[group.dtype], "shape": list(shape),
                            "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for group in groups:
            for tensor, shape in zip(group.make(), group.shapes, strict=True):
                assert tuple(tensor.shape) == shape and tensor.dtype == group.dtype, group.names
                file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and generation config as far as `source` has them."""
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(target) / name)
