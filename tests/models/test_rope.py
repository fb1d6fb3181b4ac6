"""Places within documents, by which tokens of packed documents are rotated."""

from __future__ import annotations

import torch

from megatron_bar.models.rope import places_in_documents


def test_a_document_begins_at_position_0():
    starts_D = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    assert places_in_documents(starts_D, 9).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
