"""`import` and `export`: Hugging Face folder to checkpoint, and back."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.dcp import CheckpointFormat, CheckpointReader, slot_item
from megatron_bar.checkpoints.engine import convert
from megatron_bar.checkpoints.hf_weights import SHARD_BYTES, HfReader, SafetensorsFormat
from megatron_bar.checkpoints.mapped import same_numbers
from megatron_bar.checkpoints.model_card import Origin, write_model_card
from megatron_bar.checkpoints.names import EMBEDDINGS_NAME, HEAD_NAME, Slot, slots
from megatron_bar.checkpoints.number_types import check_layers_alike
from megatron_bar.checkpoints.plan import Item, ItemContent
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.checkpoints.tokenizer_files import (
    TOKENIZER_FOLDER,
    ChatFormat,
    check_tokens,
    copy_tokenizer_files,
    for_serving,
)
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Buffers that old releases of transformers saved beside the weights, and that hold none.
_NO_WEIGHTS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids)")


@dataclass(frozen=True)
class SlotCopy:
    """Makes a slot of the slot `source` of another checkpoint."""

    reader: CheckpointReader
    source: Slot

    def __call__(self) -> ItemContent:
        tensor = self.reader.read(self.source)
        return ItemContent([[tensor]], [(self.reader.where(self.source), lambda: tensor)])


def write_checkpoint(
    what: str,
    target: Path,
    model: ModelConfig,
    items: Sequence[Item],
    inputs: Sequence[Path],
    carry: Callable[[Path], None],
    settings: Any = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write a whole checkpoint: an item for each of `slots(model)`, in this order, model.json, and
    what `carry` puts into `hf/`. The rest is `engine.convert`'s."""

    def write_small_files(folder: Path) -> None:
        model.save(folder)
        carry(folder / TOKENIZER_FOLDER)

    output = CheckpointFormat(list(slots(model)), items)
    return convert(what, target, output, inputs, write_small_files, settings, processes, overwrite)


def tokenizer_files_of(checkpoint: Path) -> Callable[[Path], None]:
    """A function that copies `checkpoint`'s tokenizer files, with its token ids, to a folder."""
    source = Path(checkpoint) / TOKENIZER_FOLDER

    def carry(target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target)

    return carry


@dataclass(frozen=True)
class _Join:
    reader: HfReader
    slot: Slot

    def __call__(self) -> ItemContent:
        names = self.slot.hf_names
        tensors = [self.reader.read(name) for name in names]
        sources = [(self.reader.where(name), partial(self.reader.read, name)) for name in names]
        return ItemContent([self.slot.from_hf(tensors)], sources)


def import_hf(
    source: Path,
    target: Path,
    dtype: torch.dtype | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> ModelConfig:
    """Turn the Hugging Face folder of a model of any family into a checkpoint.

    Tensors keep their bits unless `dtype` casts them.

    Raises BarError for anything wrong with `source`; then `target` is as it was.
    """
    source, target = Path(source), Path(target)
    model, items, ignored = _planned_import(source, dtype)
    if model.tied_embeddings:
        _check_tied(source, model)
    if ignored:
        say(
            f"{source}: {ignored[0]}{f' and {len(ignored) - 1} more' if ignored[1:] else ''} "
            "ignored: a buffer, not a weight"
        )

    def carry(folder: Path) -> None:
        copy_tokenizer_files(source, folder)
        config = read_json(source / "config.json")
        ids = {key: config[key] for key in _TOKEN_IDS if key in config}
        write_json(folder / "token_ids.json", ids)

    write_checkpoint(
        "import", target, model, items, [source], carry, processes=processes, overwrite=overwrite
    )
    return model


def check_import(source: Path) -> None:
    """Raise BarError where `import_hf` would, but for what only reading the tensors tells."""
    _planned_import(Path(source), None)


def _planned_import(
    source: Path, dtype: torch.dtype | None
) -> tuple[ModelConfig, list[Item], list[str]]:
    """The model, its tensors to write, and the names of what isn't imported."""
    model = hf.model_config_from_hf(source)
    check_tokens(source, model.vocab_size)
    reader = HfReader(source)
    types = {
        name: reader.check(name, shape)
        for slot in slots(model)
        for name, shape in zip(slot.hf_names, slot.hf_shapes)
    }
    if dtype is None:
        check_layers_alike(source, model, types)
    items = [
        slot_item(slot, dtype or types[slot.hf_names[0]], _Join(reader, slot))
        for slot in slots(model)
    ]
    rest = reader.names - types.keys()
    if model.tied_embeddings:
        rest -= set(Slot(model, HEAD_NAME, ()).hf_names)  # which some keep a copy under
    ignored = [name for name in sorted(rest) if _NO_WEIGHTS.fullmatch(name)]
    if unknown := sorted(rest - set(ignored)):
        raise BarError(f"{source}: tensor {unknown[0]} is not part of this model")
    return model, items, ignored


def _check_tied(source: Path, model: ModelConfig) -> None:
    """Raises BarError where the folder's head is tied to the embeddings and isn't the same."""
    reader = HfReader(source)
    embeddings, head = (Slot(model, name, ()) for name in (EMBEDDINGS_NAME, HEAD_NAME))
    for name, copy, shape in zip(embeddings.hf_names, head.hf_names, head.hf_shapes):
        if copy not in reader.names:
            continue
        reader.check(copy, shape)
        if not same_numbers(reader.read(copy), reader.read(name)):
            raise BarError(
                f"{reader.where(copy)} is not {name}, though config.json has "
                "tie_word_embeddings true; set it to false, or remove the tensor"
            )


@dataclass(frozen=True)
class _Split:
    reader: CheckpointReader
    slot: Slot

    def __call__(self) -> ItemContent:
        tensor = self.reader.read(self.slot)
        where = self.reader.where(self.slot)
        return ItemContent(self.slot.pieces_to_hf(tensor), [(where, lambda: tensor)])


def export_hf(
    source: Path,
    target: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    processes: int | None = None,
    overwrite: bool = False,
    origin: Origin | None = None,
    chat: ChatFormat | None = None,
    active: int | None = None,
) -> ModelConfig:
    """Turn a checkpoint into a Hugging Face folder that transformers loads.

    Of which class it is, the model's family says. Tensors keep their dtype and bits unless `dtype`
    is given. Weights are one file, or shards of about `shard_bytes`. `origin` is what the model
    card tells of how the model was made, `chat` how it is talked to, by default as its tokenizer
    says. `active` is how many experts a token goes to, by default as many as in training.

    Raises BarError for anything wrong with `source`, and for a model that no class computes; then
    `target` is as it was.
    """
    source, target = Path(source), Path(target)
    trained = ModelConfig.load(source)
    model = trained if active is None else _with_active(source, trained, active)
    hf.architecture(model)  # raises where there is none
    reader = open_checkpoint(source)
    items = [
        Item(slot.hf_names, slot.hf_shapes, dtype or reader.dtype(slot), _Split(reader, slot))
        for slot in slots(model)
    ]
    tokenizer_folder = source / TOKENIZER_FOLDER
    ids_file = tokenizer_folder / "token_ids.json"
    token_ids = read_json(ids_file) if ids_file.is_file() else {}

    def write_small_files(folder: Path) -> None:
        copy_tokenizer_files(tokenizer_folder, folder)
        if chat is not None:
            chat.write(folder)
        for_serving(folder, model.max_position_embeddings)
        write_json(folder / "config.json", hf.hf_config(model, _most(items), token_ids))
        write_model_card(folder, model, origin, chat is not None, trained.experts_per_token)

    convert(
        "export",
        target,
        SafetensorsFormat(items, shard_bytes),
        [source],
        write_small_files,
        active,
        processes,
        overwrite,
    )
    return model


def _with_active(source: Path, model: ModelConfig, active: int) -> ModelConfig:
    if model.num_experts is None:
        raise BarError(f"--active: {source} is a dense model, which has no experts")
    if not 1 <= active <= model.num_experts:
        raise BarError(
            f"--active {active} is not from 1 to {model.num_experts}, the experts that {source} has"
        )
    return dataclasses.replace(model, experts_per_token=active)


def _most(items: Sequence[Item]) -> torch.dtype:
    """The dtype that most of the weights have: some keep a few of theirs wider."""
    sizes: Counter[torch.dtype] = Counter()
    for item in items:
        sizes[item.dtype] += item.nbytes // item.dtype.itemsize
    return sizes.most_common(1)[0][0]
