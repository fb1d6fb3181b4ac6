"""A Hugging Face folder of a shrunken model, made the way published ones are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedTokenizerFast

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.hf_weights import INDEX, SINGLE, HfReader
from megatron_bar.checkpoints.names import slots
from megatron_bar.checkpoints.tokenizer_files import copy_tokenizer_files, load_tokenizer
from megatron_bar.launch.rehearse.shrink import SmallModel
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json

_SHARDS = 3  # at least, as large models have
_LAYER = re.compile(r"(?<=model\.layers\.)\d+")
# What of config.json is smaller than the real one's; all else stays as it is there.
_SHRUNK = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_types",
    "sliding_window",
)
# How the tokens are called by which OLMo's tokenizer ends and pads texts.
_OLMO_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}

_Weights = Callable[[str, tuple[int, ...]], torch.Tensor]


def write_small_folder(
    target: Path, small: SmallModel, source: Path | None, tokenizer: Path | None, seed: str
) -> str:
    """Write `small` as a Hugging Face folder; returns what its weights are.

    config.json and, unless `tokenizer` (a folder or a tokenizer.json) is given, the tokenizer are
    those of the folder `source`; each tensor has the dtype that it has there. Weights are the
    corners of its tensors, or random, by `seed`, where it has none. Without a `source` the folder
    is as a published model's: bf16, with OLMo's tokens.

    Raises BarError for a folder that can't be read, and where no tokenizer is at hand.
    """
    target.mkdir(parents=True)
    if source is not None:
        copy_tokenizer_files(source, target)
    if tokenizer is not None:
        _copy_tokenizer(tokenizer, target)
    if not (target / "tokenizer.json").is_file():
        raise BarError(
            f"{source or 'the anchor'} has no tokenizer.json here; give --tokenizer "
            "with a folder or a tokenizer.json"
        )
    has_weights = source is not None and any((source / name).is_file() for name in (INDEX, SINGLE))
    dtype = torch.bfloat16 if source is None else hf.stored_type(source)
    weights = (
        _corners(HfReader(source), small.layers) if source and has_weights else _random(dtype, seed)
    )
    tensors = {
        name: weights(name, shape)
        for slot in slots(small.model)
        for name, shape in zip(slot.hf_names, slot.hf_shapes)
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    save_torch_state_dict(tensors, target, max_shard_size=size // _SHARDS)
    config = hf.hf_config(small.model, dtype, _token_ids(target))
    if source is not None:
        real = read_json(source / "config.json")
        kept = {key: value for key, value in real.items() if key not in _SHRUNK}
        config = kept | {key: config[key] for key in _SHRUNK if key in config}
    write_json(target / "config.json", config)
    types = " and ".join(
        sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    )
    return f"{'corners of the real tensors' if has_weights else 'random'} in {types}"


def _corners(reader: HfReader, layers: tuple[int, ...]) -> _Weights:
    def corner(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        real = _LAYER.sub(lambda match: str(layers[int(match.group())]), name)
        return reader.read(real)[tuple(map(slice, shape))].clone()

    return corner


def _random(dtype: torch.dtype, seed: str) -> _Weights:
    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
        noise = torch.randn(shape, generator=generator)
        # Norms' weights are vectors; the rest keeps the size of what goes through it.
        scaled = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
        return scaled.to(dtype)

    return draw


def _copy_tokenizer(tokenizer: Path, target: Path) -> None:
    if tokenizer.is_dir():
        copy_tokenizer_files(tokenizer, target)
        return
    try:
        loaded = PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer),
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
        )
    except Exception as error:  # the library raises bare Exceptions
        raise BarError(f"--tokenizer {tokenizer} is no tokenizer.json: {error}") from None
    known = loaded.get_vocab()
    if missing := [word for word in _OLMO_TOKENS.values() if word not in known]:
        raise BarError(
            f"--tokenizer {tokenizer} has no token {missing[0]}, so it isn't OLMo's; "
            "give a folder with a tokenizer_config.json"
        )
    loaded.add_special_tokens({**_OLMO_TOKENS})
    loaded.save_pretrained(target)


def _token_ids(folder: Path) -> dict[str, int | None]:
    tokenizer = load_tokenizer(folder)
    return {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
