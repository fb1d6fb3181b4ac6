"""The optimizer's state of each parameter: where it is, how it is saved and restored.

Megatron's own state dicts also carry parameter groups, by their place on the first rank, and trip
over ranks whose optimizer has nothing to do. Groups follow from the recipe and the learning rate
from the schedule, so only what belongs to a parameter is saved, under the parameter's key.

Of the distributed optimizer Megatron-Core has two forms to save. `dp_reshardable` writes each
rank's part of the gradient buffers, which no other layout can read; `fully_reshardable` gathers the
whole state on every rank, or on one, and is wrong where buckets are padded. Here each rank writes
its part of each parameter, as boxes of the parameter (`training.boxes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from megatron_bar.training.boxes import boxes_of_range

_MOMENTS = ("exp_avg", "exp_avg_sq")


def stepped_tensors(
    part: MegatronOptimizer,
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor, bool]]:
    """`(parameter, the fp32 tensor that is stepped for it, whether that is a copy)`.

    In the distributed optimizer the tensor is this rank's shard.
    """
    if part.optimizer is None:  # nothing of its kind trains on this rank
        return
    if isinstance(part, DistributedOptimizer):
        lists = [
            (part.model_float16_groups, part.shard_fp32_from_float16_groups, True),
            (part.model_fp32_groups, part.shard_fp32_groups, False),
        ]
    elif isinstance(part, Float16OptimizerWithFloat16Params):
        lists = [
            (part.float16_groups, part.fp32_from_float16_groups, True),
            (part.fp32_from_fp32_groups, part.fp32_from_fp32_groups, False),
        ]
    else:
        parameters = [part.get_parameters()]
        lists = [(parameters, parameters, False)]
    for model_groups, stepped_groups, is_copy in lists:
        for model_group, stepped_group in zip(model_groups, stepped_groups):
            for parameter, stepped in zip(model_group, stepped_group):
                yield parameter, stepped, is_copy


def sharded_optimizer_state(
    part: MegatronOptimizer, model_state: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Sharded tensors of each parameter's state, by its number on this rank.

    They are views of the state, which must be allocated. `model_state` is the sharded state of the
    model. In the distributed optimizer they are this rank's own share: nothing is gathered.
    """
    entry_of = {entry.data: entry for entry in model_state.values()}
    found = {}
    for number, (parameter, stepped, is_copy) in enumerate(stepped_tensors(part)):
        tensors = {name: part.optimizer.state[stepped][name] for name in _MOMENTS}
        tensors |= {"param": stepped.data} if is_copy else {}
        found[number] = {
            name: _shards(part, entry_of[parameter], tensor, f"optimizer.state.{name}")
            for name, tensor in tensors.items()
        }
    return found


def _shards(
    part: MegatronOptimizer,
    entry: ShardedTensor | ShardedTensorFactory,
    tensor: torch.Tensor,
    prefix: str,
) -> list[Any]:
    if not isinstance(part, DistributedOptimizer):
        return [make_sharded_optimizer_tensor(entry, tensor, prefix)]
    held = part._get_model_param_range_map(entry.data)["param"]
    return boxes_of_range(entry, tensor, held.start, held.end, prefix)


def allocate(part: MegatronOptimizer) -> None:
    """Make the moments, zero, which the optimizer itself does at its first step."""
    if part.optimizer is not None:
        part.init_state_fn(part.optimizer, part.config)


def restore(
    part: MegatronOptimizer,
    asked: dict[int, dict[str, Any]],
    loaded: dict[int, dict[str, Any]],
    steps: int,
) -> None:
    """Take over what was `loaded` for `asked`, a `sharded_optimizer_state`, after `steps` steps."""
    for number, tensors in asked.items():
        for name, shards in tensors.items():
            for shard, tensor in zip(shards, loaded[number][name], strict=True):
                shard.data.copy_(tensor)
    count_steps(part, steps)


def count_steps(part: MegatronOptimizer, steps: int) -> None:
    """Let an optimizer whose moments stand go on after so many steps, which may be none."""
    if part.optimizer is None:
        return
    for group in part.optimizer.param_groups:
        if not isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            group["step"] = steps  # Transformer Engine's Adam counts by group
            continue
        for parameter in group["params"]:  # torch's by parameter
            part.optimizer.state[parameter]["step"] = torch.tensor(
                float(steps),
                device=parameter.device,  # where the fused one wants it
            )
