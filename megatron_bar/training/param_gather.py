"""Parameters that are gathered while the forward pass runs, layer by layer.

With `overlap_param_gather` an optimizer step ends when each rank has its share of the new weights;
the others' shares come bucket by bucket, and Megatron waits for a module's own parameters before
that module's forward pass. Two kinds of readers would be past that: modules that compute with the
weights of modules inside them, and whoever reads weights without a forward pass, to save them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import unwrap_model

from megatron_bar.models.all_experts import AllExperts
from megatron_bar.models.router import RowRouter

# These read weights of modules inside them, whose own forward passes aren't called.
_READ_ALL_INSIDE = (AllExperts, RowRouter)


def wait_where_weights_are_read(wrapped: DistributedDataParallel) -> None:
    """Have those modules wait, too, that read weights past the modules which hold them."""
    if not wrapped.use_forward_hook:
        return
    model = unwrap_model(wrapped)
    for module in model.modules():
        if isinstance(module, _READ_ALL_INSIDE):
            module.register_forward_pre_hook(
                lambda module, inputs: _wait_for(wrapped, module.parameters())
            )
    if model.post_process:
        # The loss is computed with the head's weight, not by a call of the head.
        model.decoder.register_forward_hook(
            lambda *_: _wait_for(wrapped, model.output_layer.parameters())
        )


def _wait_for(wrapped: DistributedDataParallel, parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        # Frozen ones have no bucket.
        if bucket := wrapped.param_to_bucket_group.get(parameter):
            bucket.finish_param_sync()


def gather_parameters(wrapped: DistributedDataParallel) -> None:
    """Wait until this rank has all parameters as they are after the last step.

    For whoever reads them without a forward pass. All ranks call this together.
    """
    if wrapped.use_forward_hook:
        wrapped.start_param_sync(force_sync=True)
