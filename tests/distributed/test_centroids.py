"""Router rows that start at centroids are the same in every layout, and what transformers says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import ROUTER_NAME, slots
from megatron_bar.data.packing import Example, Examples, pack
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from tests.distributed import ranks
from tests.layouts import EXPERTS
from tests.models_hf import SIZES, imported, random_experts

LENGTHS = {"general": (20, 9), "math": (31, 7), "code": (13, 25, 6), "law": (30,)}
OWNERS = [0, 1, 2, 3]
ROW = 32


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint, packed rows, and the rows that routers should have, [L, E, H]."""
    folder = tmp_path_factory.mktemp("centroids")
    model = random_experts(4)
    checkpoint = imported(model, folder)
    rng = np.random.default_rng(5)
    documents = {
        source: [rng.integers(SIZES["vocab_size"], size=length) for length in lengths]
        for source, lengths in LENGTHS.items()
    }
    rows = pack(
        {
            source: Examples([Example(ids, np.ones(len(ids), bool)) for ids in texts])
            for source, texts in documents.items()
        },
        ROW,
    )
    assert len(rows) % 2 == 1  # two ranks don't have as many each
    gates = [layer.mlp.gate for layer in model.model.layers]
    expected_LEH = torch.stack(
        [
            torch.stack([_mean_input(model, gate, texts) for texts in documents.values()])
            for gate in gates
        ]
    )
    lengths_L11 = torch.stack([gate.weight.norm(dim=1).mean() for gate in gates])[:, None, None]
    return (
        checkpoint,
        rows,
        (lengths_L11 * torch.nn.functional.normalize(expected_LEH, dim=-1)).detach(),
    )


@torch.no_grad()
def _mean_input(model, gate, texts) -> torch.Tensor:
    """Over all tokens that have a next one."""
    seen = []
    handle = gate.register_forward_pre_hook(lambda gate, inputs: seen.append(inputs[0][:-1]))
    for ids in texts:
        model(torch.tensor(ids)[None])
    handle.remove()
    return torch.cat(seen).mean(0)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["tp1", "tp2", "ep2", "dp2"])
def test_rows_start_at_the_mean_input_of_their_experts_data(layout, start, tmp_path):
    checkpoint, rows, expected_LEH = start
    layout = EXPERTS[layout]
    processes.start(
        ranks.centroids,
        checkpoint,
        layout,
        rows,
        OWNERS,
        tmp_path,
        processes=layout.processes,
        timeout_seconds=120,
    ).wait()
    reader = CheckpointReader(tmp_path)
    found_LEH = torch.stack(
        [
            reader.read(slot)
            for slot in slots(ModelConfig.load(checkpoint))
            if slot.name is ROUTER_NAME
        ]
    )
    torch.testing.assert_close(found_LEH, expected_LEH, rtol=1e-4, atol=1e-6)
