"""Families of models, their layers and BAR's experts as Megatron-Core specs.

Shape suffixes used on this floor: B batch, S sequence, H hidden, N query heads, K kv heads,
D head dim, E experts, F ffn, V vocabulary, L layers; W = the width N*D or K*D of a projection.
"""
