"""Hugging Face folders as users have them: models too large to write, and the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_bar.checkpoints.hf_weights import SINGLE
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import ModelConfig
