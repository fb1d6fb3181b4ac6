"""Rows as a model takes them.

The label of position t is the token at t + 1, so a batch carries the loss mask one place to the
left of the rows', beside the labels. Shapes: B batch, S sequence, D documents.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_bar.data.batches import check_length
from megatron_bar.data.rows import PackedRows
from megatron_bar.runtime.devices import attention_by_boundaries


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. What keeps documents apart is either the mask or the boundaries.

    With boundaries B is 1: all rows lie in one long sequence.
    """

    tokens_BS: torch.Tensor  # int64
    labels_BS: torch.Tensor  # int64: the next token of the same document, else the padding id
    loss_mask_BS: torch.Tensor  # float32: 1 where the label counts
    positions_BS: torch.Tensor  # int64: place within the document, 0 in padding
    sources_BS: torch.Tensor  # int64: index of the label's source, -1 where there is no label
    # bool, True = hidden, as Megatron has it: queries, then keys
    attention_mask_B1SS: torch.Tensor | None = None
    boundaries_D: torch.Tensor | None = None  # int32: where documents and paddings begin, and S
    longest: int = 0  # tokens between two boundaries, at most
    row_length: int = 0  # of each of the rows that lie in the long sequence
    # float32, of preference pairs, one a row: by how much the reference policy finds the chosen
    # answer likelier than the rejected one, in log-probability
    reference_R: torch.Tensor | None = None

    @property
    def packed_seq_params(self) -> PackedSeqParams | None:
        """The boundaries as Transformer Engine takes them."""
        if self.boundaries_D is None:
            return None
        return PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=self.boundaries_D, cu_seqlens_kv=self.boundaries_D,
            max_seqlen_q=self.longest, max_seqlen_kv=self.longest,
        )

    def by_row(self, x_BS: torch.Tensor) -> torch.Tensor:
        """`x_BS` with each row by itself, also where all lie in one sequence."""
        return x_BS if self.boundaries_D is None else x_BS.reshape(-1, self.row_length)

    def context_part(self) -> Batch:
        """The positions that this context-parallel rank computes, with whole rows of keys.

        Of 2 C slices of each row the ranks take two each, one from either end, so that causal
        attention costs them the same: those that Megatron's get_batch_on_this_cp_rank takes, whose
        arguments change from version to version. Raises BarError where S is no multiple of 2 C.
        """
        ranks = parallel_state.get_context_parallel_world_size()
        if ranks == 1:
            return self
        length = self.tokens_BS.shape[1]
        check_length(length, ranks)
        rank = parallel_state.get_context_parallel_rank()
        slices = torch.arange(length, device=self.tokens_BS.device).chunk(2 * ranks)
        places_s = torch.cat([slices[rank], slices[-1 - rank]])
        tensors = self._tensors()
        mask_B1SS = tensors.pop("attention_mask_B1SS")
        return dataclasses.replace(
            self, **{name: x_BS[:, places_s] for name, x_BS in tensors.items()},
            attention_mask_B1SS=mask_B1SS[:, :, places_s],
        )

    def to(self, device: torch.device) -> Batch:
        tensors = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **tensors)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}


def to_batch(rows: PackedRows, pad_id: int, boundaries: bool | None = None) -> Batch:
    """Tensors of some rows: labels and loss moved one place to the left, documents kept apart.

    A position sees the earlier ones of its own document. Padding sees padding, so that no softmax
    runs over nothing. `boundaries` takes the place of the mask of S x S a row; by default where
    attention goes by them.
    """
    documents_BS = torch.from_numpy(np.asarray(rows.documents_RS))
    tokens_BS = torch.from_numpy(rows.tokens_RS.astype(np.int64))
    tokens_BS.masked_fill_(documents_BS == 0, pad_id)
    continues_BS = torch.zeros_like(documents_BS, dtype=torch.bool)
    continues_BS[:, :-1] = (documents_BS[:, 1:] == documents_BS[:, :-1]) & (documents_BS[:, 1:] > 0)
    labels_BS = torch.full_like(tokens_BS, pad_id)
    labels_BS[:, :-1] = tokens_BS[:, 1:]
    labels_BS.masked_fill_(~continues_BS, pad_id)
    learned_BS = torch.zeros_like(continues_BS)
    learned_BS[:, :-1] = torch.from_numpy(np.asarray(rows.loss_RS))[:, 1:]
    sources_BS = torch.from_numpy(rows.sources_RS.astype(np.int64))
    reference_R = None if rows.reference_R is None else torch.from_numpy(rows.reference_R)
    batch = Batch(
        tokens_BS=tokens_BS,
        labels_BS=labels_BS,
        loss_mask_BS=(learned_BS & continues_BS).float(),
        positions_BS=_positions(documents_BS),
        sources_BS=sources_BS.masked_fill_(~continues_BS, -1),
    )
    if boundaries is None:
        context = parallel_state.get_context_parallel_world_size() or 1  # 0: no groups, no model
        boundaries = attention_by_boundaries(context)
    if not boundaries:
        return dataclasses.replace(batch, attention_mask_B1SS=_attention_mask(documents_BS),
                                   reference_R=reference_R)
    flat = {k: v.reshape(1, -1) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    starts_D = torch.nonzero(_starts(documents_BS).flatten()).flatten()
    ends_D = torch.cat([starts_D, torch.tensor([documents_BS.numel()])])
    return dataclasses.replace(
        batch, **flat, boundaries_D=ends_D.int(), longest=int(ends_D.diff().max()),
        row_length=documents_BS.shape[1], reference_R=reference_R,
    )


def _starts(documents_BS: torch.Tensor) -> torch.Tensor:
    """True at the first token of each document and of each padding."""
    starts_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    starts_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    return starts_BS


def _positions(documents_BS: torch.Tensor) -> torch.Tensor:
    """Distance from the first token of the own document."""
    place_S = torch.arange(documents_BS.shape[1])
    first_BS = torch.where(_starts(documents_BS), place_S, 0).cummax(dim=1).values
    return torch.where(documents_BS > 0, place_S - first_BS, 0)


def _attention_mask(documents_BS: torch.Tensor) -> torch.Tensor:
    same_BSS = documents_BS[:, :, None] == documents_BS[:, None, :]
    return ~same_BSS.tril().unsqueeze(1)
