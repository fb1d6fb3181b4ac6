"""Branch, Adapt, Route: modular post-training of OLMo models on Megatron-Core."""

__version__ = "0.1.0"
