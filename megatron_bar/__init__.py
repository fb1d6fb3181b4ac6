"""Branch, Adapt, Route: modular post-training of language models on Megatron-Core."""

__version__ = "0.1.0"

import megatron_bar.runtime  # noqa: F401  (first of all: it quiets the libraries)
