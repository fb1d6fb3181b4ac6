"""Rows as a model takes them.

The label of position t is the token at t + 1, so a batch carries the loss mask one place to the
left of the rows', beside the labels. Shapes: B batch, S sequence, T tokens of a whole row, R rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core import parallel_state

from megatron_bar.data.batches import check_length
from megatron_bar.data.rows import PackedRows
from megatron_bar.models.packed import PackedDocuments, pack_documents, starts


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. Documents are kept apart by a mask or, in one sequence, by boundaries.

    With `packed`, B is 1 and all rows lie in one long sequence. Without, the mask is built where it
    is asked for, on the batch's device.
    """

    tokens_BS: torch.Tensor  # int64
    labels_BS: torch.Tensor  # int64: the next token of the same document, else the padding id
    loss_mask_BS: torch.Tensor  # float32: 1 where the label counts
    positions_BS: torch.Tensor  # int64: place within the document, 0 in padding
    sources_BS: torch.Tensor  # int64: index of the label's source, -1 where there is no label
    documents_BS: torch.Tensor  # int: tells the documents of a row apart, and its padding
    # Of the rows as they are whole, where S is the part of a context-parallel rank; with it, the
    # places of that part in them.
    whole_documents_BT: torch.Tensor | None = None
    places_S: torch.Tensor | None = None
    packed: PackedDocuments | None = None
    row_length: int = 0  # of each of the rows that lie in the long sequence
    # float32, of preference pairs, one a row: by how much the reference policy finds the chosen
    # answer likelier than the rejected one, in log-probability
    reference_R: torch.Tensor | None = None

    @property
    def attention_mask_B1SS(self) -> torch.Tensor | None:
        """True where hidden, as in Megatron: queries, then keys, of whole rows. None if packed."""
        if self.packed is not None:
            return None
        if self.whole_documents_BT is None or self.places_S is None:
            same_BSS = self.documents_BS[:, :, None] == self.documents_BS[:, None, :]
            return ~same_BSS.tril().unsqueeze(1)
        keys_BT = self.whole_documents_BT
        same_BST = self.documents_BS[:, :, None] == keys_BT[:, None, :]
        earlier_ST = self.places_S[:, None] >= torch.arange(keys_BT.shape[1], device=keys_BT.device)
        return ~(same_BST & earlier_ST).unsqueeze(1)

    def by_row(self, x_BS: torch.Tensor) -> torch.Tensor:
        """`x_BS` with each row by itself, also where all lie in one sequence."""
        return x_BS if self.packed is None else x_BS.reshape(-1, self.row_length)

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
        places_S = torch.cat([slices[rank], slices[-1 - rank]])
        return dataclasses.replace(
            self._each_BS(lambda x_BS: x_BS[:, places_S]),
            whole_documents_BT=self.documents_BS,
            places_S=places_S,
        )

    def in_one_sequence(self) -> Batch:
        """The rows, or parts of rows, end to end, with boundaries in place of a mask."""
        whole_BT = self.whole_documents_BT
        if whole_BT is None:
            packed = pack_documents(self.documents_BS)
        else:
            packed = pack_documents(
                whole_BT,
                parallel_state.get_context_parallel_world_size(),
                parallel_state.get_context_parallel_rank(),
            )
        return dataclasses.replace(
            self._each_BS(lambda x_BS: x_BS.reshape(1, -1)),
            packed=packed,
            row_length=self.tokens_BS.shape[1],
            whole_documents_BT=None,
            places_S=None,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, the boundaries too."""
        bounds = {} if self.packed is None else self.packed.bounds()
        return self._tensors() | bounds

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Batch:
        """The same batch with others in the place of its `tensors()`."""
        return Batch(
            tokens_BS=tensors["tokens_BS"],
            labels_BS=tensors["labels_BS"],
            loss_mask_BS=tensors["loss_mask_BS"],
            positions_BS=tensors["positions_BS"],
            sources_BS=tensors["sources_BS"],
            documents_BS=tensors["documents_BS"],
            whole_documents_BT=tensors.get("whole_documents_BT"),
            places_S=tensors.get("places_S"),
            packed=None if self.packed is None else self.packed.with_bounds(tensors),
            row_length=self.row_length,
            reference_R=tensors.get("reference_R"),
        )

    def _each_BS(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            tokens_BS=change(self.tokens_BS),
            labels_BS=change(self.labels_BS),
            loss_mask_BS=change(self.loss_mask_BS),
            positions_BS=change(self.positions_BS),
            sources_BS=change(self.sources_BS),
            documents_BS=change(self.documents_BS),
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}


def to_batch(rows: PackedRows, pad_id: int) -> Batch:
    """Tensors of some rows: labels and loss moved one place to the left, documents kept apart.

    A position sees the earlier ones of its own document. Padding sees padding, so that no softmax
    runs over nothing.
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
    return Batch(
        tokens_BS=tokens_BS,
        labels_BS=labels_BS,
        loss_mask_BS=(learned_BS & continues_BS).float(),
        positions_BS=_positions(documents_BS),
        sources_BS=sources_BS.masked_fill_(~continues_BS, -1),
        documents_BS=documents_BS,
        reference_R=None if rows.reference_R is None else torch.from_numpy(rows.reference_R),
    )


def _positions(documents_BS: torch.Tensor) -> torch.Tensor:
    """Distance from the first token of the own document."""
    place_S = torch.arange(documents_BS.shape[1])
    first_BS = torch.where(starts(documents_BS), place_S, 0).cummax(dim=1).values
    return torch.where(documents_BS > 0, place_S - first_BS, 0)
