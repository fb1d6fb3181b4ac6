"""Log-probabilities and one update, against plain PyTorch on transformers' model."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.checkpoints.hf_weights import HfReader
from megatron_bar.launch import processes
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.objective import mean_weights, policy_loss
from tests.layouts import EXPERTS
from tests.models_hf import imported, random_experts
from tests.rlvr import ranks

pytestmark = pytest.mark.distributed

TEMPERATURE = 0.7
SETTINGS = Rlvr(
    **ranks.SETTINGS
    | dict(
        # Adam divides by the size of a gradient; a large eps keeps rounding of tiny ones small.
        lr=1e-2,
        eps=1e-4,
        temperature=TEMPERATURE,
        max_grad_norm=0.5,
    )
)
# Of gspo the ratio is that of a response, which strays less.
OBJECTIVES = {
    "dapo": SETTINGS,
    "gspo": dataclasses.replace(SETTINGS, loss_type="gspo", clip_low=0.08, clip_high=0.08),
}
FROZEN = "mlp.experts.0."


def _rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 331, (8, 11), generator=generator)
    mask = torch.zeros(8, 10)
    for i in range(8):
        mask[i, 3 + i % 3 : 8 + i % 2] = 1
    return {
        "tokens": tokens,
        "mask": mask,
        "old_logprobs": 0.3 * torch.randn(8, 10, generator=generator),  # off the policy's
        "advantages": torch.randn(8, 1, generator=generator).expand(8, 10),
    }


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return imported(random_experts(2), tmp_path_factory.mktemp("experts"))


@functools.cache
def _reference(loss_type):
    """The rows, and what transformers and AdamW make of them."""
    model, rows = random_experts(2), _rows()

    def distribution() -> torch.Tensor:
        logits = model(rows["tokens"][:, :-1]).logits / TEMPERATURE
        return logits.log_softmax(-1)

    def logprobs() -> torch.Tensor:
        return distribution().gather(-1, rows["tokens"][:, 1:, None])[..., 0]

    # Old log-probabilities near the policy's, so that some ratios are clipped and some are not.
    rows["old_logprobs"] += logprobs().detach()
    before = distribution().detach()
    opened = [p for n, p in model.named_parameters() if FROZEN not in n and "mlp.gate" not in n]
    gates = [p for n, p in model.named_parameters() if "mlp.gate" in n]
    optimizer = torch.optim.AdamW(
        opened + gates, lr=SETTINGS.lr, betas=(0.9, 0.95), eps=SETTINGS.eps, weight_decay=0.0
    )
    found = policy_loss(
        logprobs(), rows["old_logprobs"], rows["advantages"], rows["mask"], OBJECTIVES[loss_type]
    )
    total = mean_weights(rows["mask"], loss_type).sum().item()
    (found.loss / total).backward()
    for gate in gates:  # the anchor's row is frozen
        gate.grad[0] = 0
    torch.nn.utils.clip_grad_norm_(opened + gates, SETTINGS.max_grad_norm)
    optimizer.step()
    return rows, {
        "weights": {n: p.detach() for n, p in model.state_dict().items()},
        "logprobs": before.gather(-1, rows["tokens"][:, 1:, None])[..., 0],
        "entropy": -(before.exp() * before).sum(-1),
        "after": logprobs().detach(),
        "loss": found.loss.item() / total,
        "clip_fraction": found.clipped.item() / total,
    }


@pytest.mark.parametrize(
    "name, micro_batch_size, loss_type",
    [
        ("tp1", 1, "dapo"),
        ("tp1", 8, "dapo"),
        ("tp2", 2, "dapo"),
        ("pp2", 2, "dapo"),
        ("dp2", 2, "dapo"),
        ("ep2", 2, "dapo"),
        ("tp2pp2ep2", 2, "dapo"),
        ("dp2", 1, "gspo"),
    ],
)
def test_an_update_is_that_of_plain_pytorch(name, micro_batch_size, loss_type, experts, tmp_path):
    rows, expected = _reference(loss_type)
    layout = EXPERTS[name]
    settings = dataclasses.replace(
        OBJECTIVES[loss_type], weight_decay=0.0, micro_batch_size=micro_batch_size
    )
    processes.start(
        ranks.one_update,
        experts,
        layout,
        settings,
        rows,
        tmp_path,
        processes=layout.processes,
        timeout_seconds=120,
    ).wait()
    parts = [
        torch.load(tmp_path / f"scored-{i}.pt", map_location="cpu") for i in range(layout.data)
    ]
    scored = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    torch.testing.assert_close(scored["logprobs"], expected["logprobs"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored["entropy"], expected["entropy"], atol=1e-5, rtol=1e-5)
    # The reference policy is that before the update, and asking for it leaves the update in place.
    assert torch.equal(scored["reference"], scored["logprobs"])
    torch.testing.assert_close(scored["after"], expected["after"], atol=1e-4, rtol=1e-4)
    update = json.loads((tmp_path / "update.json").read_text())
    assert update["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert 0 < update["clip_fraction"] < 1
    assert update["clip_fraction"] == pytest.approx(expected["clip_fraction"])
    assert update["tokens"] == rows["mask"].sum()
    export_hf(tmp_path / "after", tmp_path / "hf")
    ours = HfReader(tmp_path / "hf")
    for weight, value in expected["weights"].items():
        torch.testing.assert_close(ours.read(weight), value, atol=1e-5, rtol=1e-5)
