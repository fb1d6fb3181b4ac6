"""A stand-in for flash attention over packed documents, which needs a GPU: one after the other."""

from __future__ import annotations

import torch


def varlen_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """`q_TND, k_TKD, v_TKD -> x_TND`; the last query of a document sees its last key."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key))
    assert (cu_seq_q.diff().max(), cu_seq_k.diff().max()) == (max_q, max_k)
    left, right = window_size
    assert right == 0
    parts = []
    for queries, keys in zip(cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist()):
        q_NSD = query[slice(*queries)].transpose(0, 1)
        k_KTD, v_KTD = (x[slice(*keys)].transpose(0, 1) for x in (key, value))
        count, seen = q_NSD.shape[1], k_KTD.shape[1]
        distance_ST = torch.arange(seen - count, seen)[:, None] - torch.arange(seen)
        visible_ST = (distance_ST >= 0) & ((distance_ST <= left) | (left < 0))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                q_NSD[None],
                k_KTD[None],
                v_KTD[None],
                attn_mask=visible_ST,
                scale=scale,
                enable_gqa=True,
            )[0].transpose(0, 1)
        )
    return torch.cat(parts)
