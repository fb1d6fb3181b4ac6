"""The head and the loss in chunks, against torch's own over all tokens and the real vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_bar.models import loss
from megatron_bar.models.loss import linear_loss

TOKENS, HIDDEN, VOCABULARY, PADDED, TEMPERATURE = 13, 8, 11, 16, 0.7
BOTH, HEAD_FROZEN, HEAD_ALONE = (True, True), (True, False), (False, True)


class OneRank:
    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


def inputs(open_, dtype=torch.float32, tokens=TOKENS, vocabulary=VOCABULARY, padded=PADDED):
    generator = torch.Generator().manual_seed(0)
    x_TH = torch.randn(tokens, HIDDEN, generator=generator)
    head_VH = 2 * torch.randn(padded, HIDDEN, generator=generator)
    labels_T = torch.randint(vocabulary, (tokens,), generator=generator)
    weight_T = torch.rand(tokens, generator=generator)
    x_TH, head_VH = (
        tensor.to(dtype).requires_grad_(flag) for tensor, flag in zip((x_TH, head_VH), open_)
    )
    return x_TH, head_VH, labels_T, weight_T


def plain(x_TH, head_VH, labels_T):
    logits_TV = (x_TH.float() @ head_VH[:VOCABULARY].float().T) / TEMPERATURE
    log_probs_TV = logits_TV.log_softmax(-1)
    loss_T = -log_probs_TV.gather(-1, labels_T[:, None])[:, 0]
    return loss_T, -(log_probs_TV.exp() * log_probs_TV).sum(-1)


@pytest.fixture(params=["logits kept", "computed again"])
def small_chunks(request, monkeypatch):
    """Three chunks, the last of which isn't full."""
    monkeypatch.setattr(loss, "chunk_tokens", lambda columns, on_gpu: 5)
    if request.param == "computed again":
        monkeypatch.setattr(loss, "KEPT_BYTES", 0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("open_", [BOTH, HEAD_FROZEN, HEAD_ALONE])
def test_equals_torch_over_the_real_rows(open_, dtype, tolerance, small_chunks):
    found, expected = [], []
    for results, function in (
        (
            found,
            lambda *args: linear_loss(*args, VOCABULARY, OneRank(), TEMPERATURE, with_entropy=True),
        ),
        (expected, plain),
    ):
        x_TH, head_VH, labels_T, weight_T = inputs(open_, dtype)
        loss_T, entropy_T = function(x_TH, head_VH, labels_T)
        (loss_T * weight_T).sum().backward()
        results += [loss_T.detach(), entropy_T.detach(), x_TH.grad, head_VH.grad]
    for ours, theirs in zip(found, expected):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.allclose(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)
    if open_[1]:
        assert not found[3][VOCABULARY:].any()  # of rows that pad the vocabulary


class Largest(TorchDispatchMode):
    """The bytes of the largest fp32 tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float32:
                self.bytes = max(self.bytes, tensor.nbytes)
        return made


@pytest.mark.parametrize("open_", [BOTH, HEAD_FROZEN])
def test_fp32_logits_of_all_positions_never_exist(open_):
    """A bf16 model, forward and backward; what is kept between them has the model's type."""
    tokens, vocabulary = 1024, 8192
    x_TH, head_VH, labels_T, weight_T = inputs(
        open_, torch.bfloat16, tokens, vocabulary, vocabulary
    )
    kept = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t),
    ):
        loss_T, _ = linear_loss(x_TH, head_VH, labels_T, vocabulary, OneRank())
        (loss_T * weight_T).sum().backward()
    whole = 4 * tokens * vocabulary
    assert 0 < largest.bytes <= whole / 8
    assert sum(kept) < (whole if open_[1] else whole / 100)


def test_a_token_that_the_model_is_sure_of_keeps_its_gradient():
    """In bf16 a probability near 1 is 1, and 1 - 1 would be all that is left."""
    x_TH = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
    head_VH = torch.tensor([[8.0], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    linear_loss(x_TH, head_VH, torch.tensor([0]), 2, OneRank())[0].sum().backward()
    p = torch.tensor(-8.0).exp()
    assert head_VH.grad[0].item() == pytest.approx((-p / (1 + p)).item(), rel=1e-2)
