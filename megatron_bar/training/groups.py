"""Parameter groups: what a stage trains and what it freezes, by name and global expert id."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import xxhash
from megatron.core import parallel_state

from megatron_bar.checkpoints.merge_plan import ANCHOR_FFN
from megatron_bar.checkpoints.names import (
    EMBEDDINGS_NAME,
    HEAD_NAME,
    ROUTER_NAME,
    Slot,
    slots,
    table,
)
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.distributed import of_all_ranks
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import tensor_digest

_GROUP = "bar_group"  # attribute of a parameter
_LAYER = re.compile(r"^decoder\.layers\.\d+\.")
_LOCAL_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.")
_ROUTER_ROW = re.compile(r"mlp\.router\.rows\.(\d+)$")


def group_sizes(model: ModelConfig) -> dict[str, int]:
    """Every group of `model` and its number of parameters, over all ranks."""
    sizes: dict[str, int] = {}
    for slot in slots(model):
        experts = slot.index[1:] or range(model.num_experts or 0)
        groups = sorted({slot.name.group.format(expert=e) for e in experts} or {slot.name.group})
        numel = sum(torch.Size(shape).numel() for shape in slot.hf_shapes)
        for group in groups:
            sizes[group] = sizes.get(group, 0) + numel // len(groups)
    return sizes


def named_groups(
    model: torch.nn.Module, config: ModelConfig
) -> Iterator[tuple[str, str, torch.nn.Parameter]]:
    """`(group, name, parameter)` for each parameter on this rank; experts by global id."""
    group_of_key = {name.key: name.group for name in table(config)}
    if config.tied_embeddings:  # of which the last pipeline rank has a copy, under the head's name
        group_of_key[HEAD_NAME.key] = EMBEDDINGS_NAME.group
    expert_ranks = parallel_state.get_expert_model_parallel_world_size()
    local_experts = (config.num_experts or 1) // expert_ranks
    first_expert = parallel_state.get_expert_model_parallel_rank() * local_experts
    for name, parameter in model.named_parameters():
        key = _LAYER.sub("decoder.layers.", name.removeprefix("module."))
        expert = None
        if match := _LOCAL_EXPERT.search(key):
            expert = first_expert + int(match.group(1))
            key = _LOCAL_EXPERT.sub("mlp.experts.experts.", key)
        elif match := _ROUTER_ROW.search(key):
            expert = int(match.group(1))
            key = _ROUTER_ROW.sub("mlp.router.weight", key)
        yield group_of_key[key].format(expert=expert), name, parameter


def matching(groups: Sequence[str], patterns: Sequence[str], where: str) -> list[str]:
    """The groups that `patterns` select, in the model's order.

    Raises BarError for a pattern that selects none: a stage never trains less than it says.
    """
    tied = HEAD_NAME.group not in groups
    for pattern in patterns:
        if not any(selects(pattern, group, tied) for group in groups):
            raise BarError(
                f"{where}: {pattern!r} matches no parameter group; there are {', '.join(groups)}"
            )
    return [g for g in groups if any(selects(pattern, g, tied) for pattern in patterns)]


def check_scales(groups: Sequence[str], scales: Mapping[str, float], where: str) -> None:
    """Raise BarError for a pattern of `scales` that selects no group, and for two that contradict
    each other."""
    chosen: dict[str, str] = {}
    for pattern, factor in scales.items():
        for group in matching(groups, [pattern], where):
            first = chosen.setdefault(group, pattern)
            if scales[first] != factor:
                raise BarError(
                    f"{where}: {group} gets {scales[first]} by {first!r} and {factor} "
                    f"by {pattern!r}; give it one factor"
                )


def selects(pattern: str, group: str, tied: bool) -> bool:
    """Whether a pattern selects a group. Where embeddings are `tied`, they are the head, too."""
    both = tied and group == EMBEDDINGS_NAME.group
    return any(
        fnmatch.fnmatch(name, pattern) for name in ((group, HEAD_NAME.group) if both else (group,))
    )


def freeze(model: torch.nn.Module, config: ModelConfig, trainable: Sequence[str]) -> None:
    """Leave only the groups in `trainable` open. Called before gradient buffers are made."""
    for group, _, parameter in named_groups(model, config):
        parameter.requires_grad_(group in trainable)
        setattr(parameter, _GROUP, group)  # the optimizer chooses its settings by this


def group_of(parameter: torch.nn.Parameter) -> str:
    """The group that `freeze` found the parameter in."""
    return getattr(parameter, _GROUP)


def anchor_digest(folder: Path) -> str:
    """The digest of the anchor's FFN in a checkpoint with experts."""
    return group_digests(folder, {ANCHOR_FFN})[ANCHOR_FFN]


def group_digests(folder: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """A digest of every group's tensors in a checkpoint, or of the groups in `only`.

    It is the same whatever layout wrote them. Tensors of other groups aren't read.
    """
    model = ModelConfig.load(folder)
    chosen = _slots_of(model, only)
    return _of_groups(model, chosen, _digests_of_slots(folder, chosen, range(len(chosen))), only)


def group_digests_by_ranks(folder: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """`group_digests`, of which each rank reads a share. All ranks call this, and get the same."""
    model = ModelConfig.load(folder)
    chosen = _slots_of(model, only)
    mine = _digests_of_slots(folder, chosen, _share(chosen, dist.get_rank(), dist.get_world_size()))
    digests = {number: parts for share in of_all_ranks(mine) for number, parts in share.items()}
    return _of_groups(model, chosen, digests, only)


def _slots_of(model: ModelConfig, only: Collection[str] | None) -> list[Slot]:
    return [slot for slot in slots(model) if only is None or set(_groups(slot, model)) & set(only)]


def _share(chosen: Sequence[Slot], rank: int, ranks: int) -> list[int]:
    """The numbers of the slots that `rank` reads: the largest first, each to who has least."""
    sizes = [torch.Size(slot.shape).numel() for slot in chosen]
    loads, mine = [0] * ranks, []
    for number in sorted(range(len(chosen)), key=lambda number: -sizes[number]):
        least = loads.index(min(loads))
        loads[least] += sizes[number]
        if least == rank:
            mine.append(number)
    return mine


def _digests_of_slots(
    folder: Path, chosen: Sequence[Slot], numbers: Iterable[int]
) -> dict[int, list[str]]:
    """By number, a digest of the slot's tensor, or of each row of a router."""
    reader = open_checkpoint(folder)
    digests = {}
    for number in numbers:
        slot = chosen[number]
        tensor = reader.read(slot)
        # Rows that pad the vocabulary belong to the layout, not to the model.
        parts = (
            tensor
            if slot.name is ROUTER_NAME
            else [torch.cat([t.reshape(-1) for t in slot.to_hf(tensor)])]
        )
        digests[number] = [tensor_digest(part) for part in parts]
    return digests


def _of_groups(
    model: ModelConfig,
    chosen: Sequence[Slot],
    digests: Mapping[int, Sequence[str]],
    only: Collection[str] | None,
) -> dict[str, str]:
    found: dict[str, xxhash.xxh3_128] = {}
    for number, slot in enumerate(chosen):
        for group, digest in zip(_groups(slot, model), digests[number], strict=True):
            whole = found.setdefault(group, xxhash.xxh3_128())
            whole.update(f"{slot.key}{slot.index}{digest}".encode())
    return {
        group: digest.hexdigest()
        for group, digest in found.items()
        if only is None or group in only
    }


def _groups(slot: Slot, model: ModelConfig) -> list[str]:
    """The group a slot's tensor belongs to, or those of its rows if it is a router."""
    of_router = slot.name is ROUTER_NAME
    experts = range(model.ffns_per_layer) if of_router else slot.index[1:] or (None,)
    return [slot.name.group.format(expert=expert) for expert in experts]
