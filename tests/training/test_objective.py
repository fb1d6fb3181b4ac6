"""The loss of preference pairs, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_bar.data.batch import Batch
from megatron_bar.models.packed import pack_documents
from megatron_bar.training.objective import ChosenOverRejected, PreferenceLoss

# Two pairs and a row that pads; of six places three belong to the chosen answer. Losses are -log p.
LOSS = torch.tensor([[1.0, 2.0, 9.0, 4.0, 9.0, 9.0], [0.5, 9.0, 9.0, 0.5, 1.5, 1.0], [5.0] * 6])
MASK = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0.0] * 6])
REFERENCE = torch.tensor([0.5, 1.0, 0.0])


def _batch(flat: bool) -> Batch:
    """The rows beside each other, or in one sequence as they are packed."""
    shape = (1, -1) if flat else MASK.shape
    zeros = torch.zeros_like(MASK, dtype=torch.long).reshape(shape)
    return Batch(
        zeros,
        zeros,
        MASK.reshape(shape),
        zeros,
        zeros,
        zeros,
        reference_R=REFERENCE,
        packed=pack_documents(zeros.view_as(MASK)) if flat else None,
        row_length=6,
    )


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "normalized, differences",
    [
        # Sums: -(1 + 2) + 4 = 1 and -0.5 + (0.5 + 1.5 + 1) = 2.5.
        (False, [1.0, 2.5]),
        # Means: -3 / 2 + 4 = 2.5 and -0.5 + 3 / 3 = 0.5.
        (True, [2.5, 0.5]),
    ],
)
def test_dpo_by_hand(normalized, differences, flat):
    """beta 2: a pair's margin is 2 (d - d_ref), its loss log(1 + e^-margin).

    By sums the margins are 2 (1 - 0.5) = 1 and 2 (2.5 - 1) = 3; by means 4 and -1.
    """
    batch = _batch(flat)
    loss_BS = LOSS.reshape(batch.tokens_BS.shape).clone().requires_grad_()
    objective = PreferenceLoss(2.0, ChosenOverRejected(normalized))
    difference = objective.difference.losses(batch, loss_BS).losses_BS
    assert batch.by_row(difference).sum(-1).tolist() == pytest.approx([*differences, 0.0])
    found = objective.losses(batch, loss_BS)
    margins = [2 * (d - ref) for d, ref in zip(differences, REFERENCE.tolist())]
    assert margins == ([4, -1] if normalized else [1, 3])
    losses = [math.log(1 + math.exp(-margin)) for margin in margins]
    assert batch.by_row(found.losses_BS).sum(-1).tolist() == pytest.approx([*losses, 0.0])
    assert batch.by_row(found.counted_BS).sum(-1).tolist() == [1, 1, 0]
    assert objective.count(batch) == 2
    accuracy, margin = found.sums.tolist()
    assert accuracy == sum(m > 0 for m in margins) and margin == pytest.approx(sum(margins))
    found.losses_BS.sum().backward()
    # d loss / d(-log p) of a chosen token: beta sigmoid(-margin), shared by the answer's tokens.
    weight = 2 / (1 + math.exp(margins[0]))
    grad = batch.by_row(loss_BS.grad)
    assert grad[0].tolist() == pytest.approx(
        [weight / (2 if normalized else 1)] * 2 + [0, -weight, 0, 0]
    )
    assert not grad[2].any()
