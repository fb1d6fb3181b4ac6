"""Imported once by the server that ranks are forked from, so that a stage starts in no time."""
# ruff: noqa: F401

import megatron.core.optimizer
import megatron.core.pipeline_parallel
import transformers

import megatron_bar.data.blend
import megatron_bar.models.language_model
import megatron_bar.training.optimizer
