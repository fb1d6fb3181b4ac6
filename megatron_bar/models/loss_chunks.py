"""The sizes of what the loss computes at once and keeps; apart, as `plan` asks without torch."""

from __future__ import annotations

# Logits that an open head keeps for its own gradient, at most; beyond they are computed again.
KEPT_BYTES = 2 << 30
# Logits of a chunk: what a CPU's cache holds a part of, and what fills a GPU.
_ON_CPU, _ON_GPU = 1 << 20, 1 << 26
_FEWEST = 128  # tokens: fewer read the head too often


def chunk_tokens(columns: int, on_gpu: bool) -> int:
    """Tokens whose logits, of so many columns, are there at once."""
    return max((_ON_GPU if on_gpu else _ON_CPU) // columns, _FEWEST)
