"""`adopt`: a branch that was trained elsewhere takes a place, and a name, in a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_bar.checkpoints.manifest import FILE_NAME, Manifest
from megatron_bar.checkpoints.merge import check_same_anchor
from megatron_bar.models.config import FILE_NAME as MODEL_FILE
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import file_digest, link_tree, whole_folder, write_json


def adopt(source: Path, target: Path, anchor: Path, expert_name: str) -> ModelConfig:
    """Write `source` to `target`, with its domain expert called `expert_name`.

    The files are hard links where the disk allows it, else copies: `target` stays what it is when
    `source` is removed or trained anew.

    Raises BarError unless `source` is a branch of the dense checkpoint `anchor`, whose FFN is its
    expert 0 to the bit.
    """
    source = Path(source)
    model = check_branch(source, anchor)
    named = dataclasses.replace(model, expert_names=("anchor", expert_name))
    with whole_folder(target, overwrite=True) as staging:
        link_tree(source, staging)
        if named != model:
            (staging / MODEL_FILE).unlink()  # of a link, only this name
            named.save(staging)
            manifest = Manifest.of(staging)
            if manifest is not None:
                files = {**manifest.files, MODEL_FILE: file_digest(staging / MODEL_FILE)}
                write_json(staging / FILE_NAME, {"tensors": manifest.tensors, "files": files})
    return named


def check_branch(source: Path, anchor: Path) -> ModelConfig:
    """The model of a branch. Raises BarError unless it is one, and one of `anchor`."""
    model = ModelConfig.load(source)
    if model.num_experts != 2:
        count = "no experts" if model.num_experts is None else f"{model.num_experts} experts"
        raise BarError(f"{source} has {count}; a branch has two, the anchor and one of a domain")
    return check_same_anchor(source, anchor)
