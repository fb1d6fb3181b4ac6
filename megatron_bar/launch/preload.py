"""Imported once by the server that ranks are forked from, so that a stage starts in no time."""

import megatron.core.optimizer  # noqa: F401
import megatron.core.pipeline_parallel  # noqa: F401
import transformers  # noqa: F401

import megatron_bar.models.olmo  # noqa: F401
import megatron_bar.training.optimizer  # noqa: F401
