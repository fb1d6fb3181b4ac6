"""Imported once by the server that ranks are forked from, so that a stage starts in no time."""
# ruff: noqa: F401

import megatron.core.optimizer
import megatron.core.pipeline_parallel

# Nearly every stage loads a tokenizer, and AutoTokenizer brings all that transformers generates
# with: where scikit-learn is installed, a thousand modules.
import transformers.models.auto.tokenization_auto

import megatron_bar.evaluation.model
import megatron_bar.stages.work.train
