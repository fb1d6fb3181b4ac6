"""Parameters that are gathered while the forward pass runs are there before they are read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup

from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze, group_sizes
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.overrides import check_overrides, transformer_overrides
from megatron_bar.training.param_gather import gather_parameters
from megatron_bar.training.step import forward_backward
from tests.models.shapes import SMALL
from tests.models_hf import packed_batch

OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
# Each parameter is gathered by itself, so none comes along with another that was waited for.
ALONE = OVERLAP | {"bucket_size": 1}


def _gathered_late(wrapped, monkeypatch) -> None:
    """Leave all parameters without numbers until their gathering is asked for."""
    right = {parameter: parameter.detach().clone() for parameter in wrapped.parameters()}
    for parameter in wrapped.parameters():
        parameter.data.fill_(torch.nan)

    def start(group, force_sync=False):
        for parameter in group.params:
            parameter.data.copy_(right[parameter])
        group.param_gather_dispatched = True

    monkeypatch.setattr(_ParamAndGradBucketGroup, "start_param_sync", start)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, tied_embeddings=True),
        dataclasses.replace(SMALL, qk_norm="per_head", norm_placement="before"),
        SMALL.with_experts(3),
        SMALL.with_experts(3, 2),
    ],
    ids=["dense", "tied", "norms before", "all experts", "some experts"],
)
def test_no_weight_is_read_before_it_is_there(config, recompute, monkeypatch):
    training = Training(recompute=recompute, megatron=ALONE)
    batch = packed_batch(config.vocab_size)
    losses = []
    with process_groups(Layout()):
        torch.manual_seed(0)
        model = build_model(config, Layout(), overrides=transformer_overrides(training))
        freeze(model, config, list(group_sizes(config)))
        wrapped = wrap(model, training)
        wrapped.train()
        for late in (False, True):
            if late:
                wrapped.zero_grad_buffer()
                _gathered_late(wrapped, monkeypatch)
            losses.append(forward_backward(wrapped, [batch, batch]).loss)
        assert all(parameter.main_grad.isfinite().all() for parameter in model.parameters())
    assert losses[0] == losses[1]


def test_who_reads_weights_without_a_forward_pass_gets_all_of_them(monkeypatch):
    with process_groups(Layout()):
        model = build_model(SMALL, Layout())
        wrapped = wrap(model, Training(megatron=ALONE))
        _gathered_late(wrapped, monkeypatch)
        assert not any(parameter.isfinite().any() for parameter in model.parameters())
        gather_parameters(wrapped)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "training, message",
    [
        (Training(megatron={"overlap_param_gather": True}), "only with overlap_grad_reduce: true"),
        (
            Training(distributed_optimizer=False, megatron=OVERLAP),
            "only with distributed_optimizer: true",
        ),
        (Rlvr(megatron=OVERLAP), "in RLVR, where all weights are read"),
    ],
)
def test_it_is_refused_where_it_would_have_no_effect(training, message):
    with pytest.raises(BarError, match=f"megatron.overlap_param_gather has .* {message}"):
        check_overrides(training, SMALL, "math/sft")


def test_it_may_be_set():
    check_overrides(Training(megatron=OVERLAP), SMALL.with_experts(3), "math/sft")
