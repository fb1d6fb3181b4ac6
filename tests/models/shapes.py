"""A model small enough for a test of milliseconds."""

from megatron_bar.models.config import ModelConfig

SMALL = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    ffn_hidden_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_position_embeddings=64,
)
