"""The lowest floor: devices, process groups, Megatron versions, files, errors, the console.

What differs between CPU and GPU, or between Megatron versions, lives here and nowhere else.
"""

import logging
import warnings

from megatron_bar.runtime import broken_te

# What the libraries say at every import and call on a machine without their GPU extras; none of it
# is news to the user, who has our own lines to read.
for _message in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "torch.distributed is disabled",
    "full scope is deprecated",
    "Please use DTensor instead",
    "`load_state_dict` is deprecated",
    "TypedStorage is deprecated",
    "The .grad attribute of a Tensor that is not a leaf",
    "Please use `torch.distributed",
):
    warnings.filterwarnings("ignore", message=f".*{_message}.*")

# Megatron-Core 0.16 reports every MoE layer that isn't its own class.
logging.getLogger("megatron.core.transformer.transformer_layer").addFilter(
    lambda record: "Unknown MLP type" not in record.getMessage()
)

broken_te.install()
