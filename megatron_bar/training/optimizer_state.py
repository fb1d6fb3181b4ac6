"""The optimizer's state of each parameter: where it is, how it is saved and restored.

Megatron's own state dicts also carry parameter groups, by their place on the first rank, and trip
over ranks whose optimizer has nothing to do. Groups follow from the recipe and the learning rate
from the schedule, so only what belongs to a parameter is saved, under the parameter's key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from megatron_bar.checkpoints.model_io import sharding_metadata

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
        lists = [(part.model_float16_groups, part.shard_fp32_from_float16_groups, True),
                 (part.model_fp32_groups, part.shard_fp32_groups, False)]
    elif isinstance(part, Float16OptimizerWithFloat16Params):
        lists = [(part.float16_groups, part.fp32_from_float16_groups, True),
                 (part.fp32_from_fp32_groups, part.fp32_from_fp32_groups, False)]
    else:
        parameters = [part.get_parameters()]
        lists = [(parameters, parameters, False)]
    for model_groups, stepped_groups, is_copy in lists:
        for model_group, stepped_group in zip(model_groups, stepped_groups):
            for parameter, stepped in zip(model_group, stepped_group):
                yield parameter, stepped, is_copy


def sharded_optimizer_state(
    part: MegatronOptimizer, model_state: dict[str, Any], loading: bool
) -> dict[int, dict[str, Any]]:
    """Sharded tensors of each parameter's state, by its number on this rank.

    `model_state` is the sharded state of the model. Before a load the state must be allocated.
    """
    if part.optimizer is None:
        return {}
    entry_of = {entry.data: entry for entry in model_state.values()}
    whole = _gathered(part, loading) if isinstance(part, DistributedOptimizer) else (
        (parameter, _tensors(part, stepped, is_copy))
        for parameter, stepped, is_copy in stepped_tensors(part)
    )
    return {
        number: {
            name: make_sharded_optimizer_tensor(
                entry_of[parameter], tensor, f"optimizer.state.{name}"
            )
            for name, tensor in tensors.items()
        }
        for number, (parameter, tensors) in enumerate(whole)
    }


def _gathered(
    part: DistributedOptimizer, loading: bool
) -> Iterator[tuple[torch.nn.Parameter, dict[str, torch.Tensor]]]:
    """Each parameter with what all ranks together know of it, in the order a load expects.

    Megatron's own way from a gathered buffer to its parameters is wrong in 0.16 to 0.19 (its pull
    request 5077): the buffer comes without the padding that ends each bucket, and they are looked
    for where they would be with it. A rank that has sent its shards to another one yields nothing.
    """
    on_first_rank = sharding_metadata()["distrib_optim_fully_reshardable_mem_efficient"]
    gathered = part.get_parameter_state_dp_zero(
        use_gloo_comm=on_first_rank, empty_data=loading,
        return_on_all_ranks=loading or not on_first_rank,
    )
    for number, buffer in enumerate(part.buffers if gathered is not None else ()):
        (tensors,) = gathered[number].values()  # a buffer has one dtype
        padding = [bucket.grad_data.numel() - bucket.numel_unpadded for bucket in buffer.buckets]
        for parameter, (start, end, bucket) in buffer.param_index_map.items():
            before = sum(padding[:bucket])
            yield parameter, {
                name: tensors[name][start - before : end - before].view(parameter.shape)
                for name in ("param", *_MOMENTS)
            }


def _tensors(
    part: MegatronOptimizer, stepped: torch.Tensor, is_copy: bool
) -> dict[str, torch.Tensor]:
    tensors = {name: part.optimizer.state[stepped][name] for name in _MOMENTS}
    return tensors | ({"param": stepped.data} if is_copy else {})


def allocate(part: MegatronOptimizer) -> None:
    """Make the moments, zero, which the optimizer itself does at its first step."""
    if part.optimizer is not None:
        part.init_state_fn(part.optimizer, part.config)


def restore(part: MegatronOptimizer, state: dict[int, dict[str, Any]], steps: int) -> None:
    """Take over what was loaded into `sharded_optimizer_state`, after `steps` optimizer steps."""
    if part.optimizer is None:
        return
    if isinstance(part, DistributedOptimizer):
        part.load_parameter_state_from_fully_reshardable(state)
    else:
        for number, (_, stepped, is_copy) in enumerate(stepped_tensors(part)):
            for name, tensor in _tensors(part, stepped, is_copy).items():
                tensor.copy_(state[number][name])
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
                float(steps), device=parameter.device  # where the fused one wants it
            )
