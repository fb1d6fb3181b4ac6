"""Published OLMo-2 sizes, from the checkpoints' own config.json, and a toy."""

from __future__ import annotations

from megatron_bar.models.config import ModelConfig

_VOCAB = 100_352

PRESETS: dict[str, ModelConfig] = {
    "olmo2-1b": ModelConfig(_VOCAB, 2048, 8192, 16, 16, 16),
    "olmo2-7b": ModelConfig(_VOCAB, 4096, 11008, 32, 32, 32),
    "olmo2-13b": ModelConfig(_VOCAB, 5120, 13824, 40, 40, 40),
    "olmo2-32b": ModelConfig(_VOCAB, 5120, 27648, 64, 40, 8),
    "toy": ModelConfig(512, 128, 256, 4, 4, 2, max_position_embeddings=512),
}
