"""Router statistics recorded from a real model."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.models.routing_record import RoutingRecord, record_routing
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.step_metrics import RouterMetrics

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    ffn_hidden_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    max_position_embeddings=64,
).with_experts(3)
BATCH, SEQUENCE = 2, 5


@pytest.fixture(scope="module")
def model():
    with process_groups(Layout()):
        model = build_model(CONFIG, Layout())
        with torch.no_grad():  # rows large enough that tokens and layers route differently
            for name, parameter in model.named_parameters():
                if ".router." in name:
                    parameter.mul_(40)
        model.eval()
        yield model


@pytest.fixture(scope="module")
def tokens_BS():
    return torch.randint(96, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def forward(model, tokens_BS):
    positions_BS = torch.arange(SEQUENCE).expand(BATCH, -1)
    hidden_B1SS = ~torch.ones(BATCH, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).tril()
    return model(tokens_BS, positions_BS, hidden_B1SS)


def hidden_into_routers(model, tokens_BS):
    """What each router is given, and so what its softmax must say: [L] of [S, B, E]."""
    probs, handles = [], []
    for layer in model.decoder.layers:

        def hook(router, inputs, layer=layer):
            probs.append(torch.softmax(inputs[0].float() @ router.weight.T, dim=-1))

        handles.append(layer.mlp.router.register_forward_pre_hook(hook))
    forward(model, tokens_BS)
    for handle in handles:
        handle.remove()
    return probs


def means_of(record):
    """Mean share of each expert over all tokens that count, [L, E]."""
    sums_LX = record.sums_LCX.sum(1)
    return (sums_LX[:, :-2] / sums_LX[:, -1:]).float()


def test_means_are_those_of_the_softmax(model, tokens_BS):
    probs_LSBE = torch.stack(hidden_into_routers(model, tokens_BS))
    with record_routing(model, RoutingRecord(3, 3)) as recorded:
        forward(model, tokens_BS)
    mean_LE = means_of(recorded)
    assert mean_LE.shape == (3, 3)
    torch.testing.assert_close(mean_LE, probs_LSBE.mean((1, 2)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean_LE.sum(1), torch.ones(3), rtol=1e-5, atol=1e-6)
    assert (mean_LE[0] - mean_LE[1]).abs().max() > 1e-3  # layers aren't mixed up


def test_mask_and_several_forwards(model, tokens_BS):
    probs_LSBE = torch.stack(hidden_into_routers(model, tokens_BS))
    kept_BS = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    with record_routing(model, RoutingRecord(3, 3)) as recorded:
        recorded.labels = torch.where(kept_BS, 0, -1).T.reshape(-1)
        forward(model, tokens_BS)
        masked = means_of(recorded)
        recorded.labels = torch.where(kept_BS, -1, 0).T.reshape(-1)
        forward(model, tokens_BS)
        both = means_of(recorded)
    expected = probs_LSBE[:, kept_BS.T].mean(1)
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both, probs_LSBE.mean((1, 2)), rtol=1e-5, atol=1e-6)
    wrong_order = probs_LSBE.transpose(1, 2)[:, kept_BS.T.reshape(BATCH, SEQUENCE)].mean(1)
    assert (masked - wrong_order).abs().max() > 1e-3


def test_recording_ends_with_the_block_and_changes_nothing(model, tokens_BS):
    plain = forward(model, tokens_BS)
    with record_routing(model, RoutingRecord(3, 3)) as recorded:
        watched = forward(model, tokens_BS)
    assert torch.equal(plain, watched)
    before = means_of(recorded)
    forward(model, tokens_BS + 0)
    assert torch.equal(means_of(recorded), before)
    assert not any(layer.mlp.router._forward_hooks for layer in model.decoder.layers)


def test_wrong_labels(model, tokens_BS):
    with record_routing(model, RoutingRecord(3, 3)) as recorded:
        recorded.labels = torch.zeros(3, dtype=torch.long)
        with pytest.raises(AssertionError, match="labels has 3 tokens"):
            forward(model, tokens_BS)


@pytest.mark.parametrize(
    "labels", [None, torch.zeros(4, dtype=torch.long, device="meta")], ids=["one class", "classes"]
)
def test_recording_brings_nothing_to_the_host(labels):
    """The meta device has nothing to bring, so that whatever waits for a device fails there."""
    record = RoutingRecord(2, 3, classes=5, device="meta")
    record.labels = labels
    record.add(1, torch.rand(4, 3, device="meta"))
    assert record.sums_LCX.shape == (2, 5, 5) and record.sums_LCX.is_meta


@pytest.mark.usefixtures("model")  # for its groups of processes
def test_training_and_evaluation_count_alike_where_some_experts_are_active(tokens_BS):
    config = dataclasses.replace(CONFIG, experts_per_token=2)
    some_active = build_model(config, Layout()).eval()
    with record_routing(some_active, RoutingRecord(3, 3)) as recorded:
        forward(some_active, tokens_BS)
    training = RouterMetrics(some_active, config)
    with training.recording():
        forward(some_active, tokens_BS)
    metrics = training.metrics()
    load_LE = torch.tensor(metrics["router_load"])
    torch.testing.assert_close(load_LE, means_of(recorded))
    torch.testing.assert_close(load_LE.sum(1), torch.ones(3))
    assert max(metrics["router_entropy"]) <= math.log(2) + 1e-6
