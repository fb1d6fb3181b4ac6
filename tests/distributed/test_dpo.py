"""DPO: its loss, its gradients and the reference policy, by plain PyTorch on transformers."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import slots
from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from tests.distributed import ranks
from tests.layouts import EXPERTS
from tests.models_hf import imported, random_experts

pytestmark = pytest.mark.distributed

BETA, HALF, PAIRS = 0.7, 13, 4


def _rows() -> PackedRows:
    """Pairs of unlike length; what the reference policy says is off the model's."""
    chance = np.random.RandomState(5)
    rows = PackedRows.empty(PAIRS, 2 * HALF, ("pairs",), PackReport())
    for row in range(PAIRS):
        for half in range(2):
            length, prompt = chance.randint(8, HALF + 1), chance.randint(2, 5)
            place = slice(half * HALF, half * HALF + length)
            rows.tokens_RS[row, place] = chance.randint(1, 331, length)
            rows.documents_RS[row, place], rows.sources_RS[row, place] = half + 1, 0
            rows.loss_RS[row, half * HALF + prompt : half * HALF + length] = True
    return PackedRows(
        rows.tokens_RS,
        rows.loss_RS,
        rows.documents_RS,
        rows.sources_RS,
        rows.report,
        rows.source_names,
        chance.randn(PAIRS).astype(np.float32),
    )


def _differences(model: PreTrainedModel, rows: PackedRows, normalized: bool) -> torch.Tensor:
    """Each conversation by itself, without padding."""
    found = []
    for row in range(PAIRS):
        sides = []
        for document in (1, 2):
            place = rows.documents_RS[row] == document
            tokens_S = torch.from_numpy(rows.tokens_RS[row][place].astype(np.int64))
            learned_S = torch.from_numpy(rows.loss_RS[row][place])
            logprobs_TV = model(tokens_S[None]).logits[0, :-1].float().log_softmax(-1)
            of_answer = logprobs_TV.gather(-1, tokens_S[1:, None])[:, 0][learned_S[1:]]
            sides.append(of_answer.mean() if normalized else of_answer.sum())
        found.append(sides[0] - sides[1])
    return torch.stack(found)


# Number types, and how far losses and gradients may be from the judge's, which computes in fp32.
FP32, BF16 = ("float32", 1e-5, 1e-4), ("bfloat16", 3e-2, 6e-2)


@pytest.mark.parametrize(
    "layout, cases",
    [
        ("tp1", [(FP32, True), (FP32, False), (BF16, True)]),
        ("tp2", [(FP32, True), (BF16, False)]),
        ("dp2", [(FP32, True)]),
    ],
)
def test_loss_gradients_and_reference_are_those_of_plain_pytorch(layout, cases, tmp_path):
    model, rows = random_experts(2), _rows()
    stored = copy.deepcopy(model).to(torch.bfloat16)
    checkpoints = {
        "float32": imported(model, tmp_path / "fp32"),
        "bfloat16": imported(stored, tmp_path / "bf16"),
    }
    work = [
        (checkpoints[dtype], dtype, normalized, tmp_path / str(number))
        for number, ((dtype, *_), normalized) in enumerate(cases)
    ]
    processes.start(
        ranks.preference_gradients,
        EXPERTS[layout],
        rows,
        BETA,
        work,
        processes=EXPERTS[layout].processes,
        timeout_seconds=120,
    ).wait()
    for ((dtype, close, closer), normalized), (checkpoint, *_, out) in zip(cases, work):
        judge = stored.float() if dtype == "bfloat16" else model
        judge.zero_grad()
        differences_R = _differences(judge, rows, normalized)
        margins_R = BETA * (differences_R - torch.from_numpy(rows.reference_R))
        loss = -torch.nn.functional.logsigmoid(margins_R).mean()
        loss.backward()
        told = json.loads((out / "told.json").read_text())
        # Sums over an answer have as many roundings as it has tokens.
        assert told["reference"] == pytest.approx(differences_R.tolist(), abs=close * HALF)
        assert told["loss"] == pytest.approx(loss.item(), abs=close)
        assert told["reward_margin"] == pytest.approx(margins_R.mean().item(), abs=close * HALF)
        assert told["reward_accuracy"] == (margins_R > 0).float().mean()
        expected = {name: p.grad for name, p in judge.named_parameters()}
        reader, errors = CheckpointReader(out / "gradients"), {}
        for slot in slots(ModelConfig.load(checkpoint)):
            for name, gradient in zip(slot.hf_names, slot.to_hf(reader.read(slot))):
                errors[name] = ((gradient - expected[name]).norm() / expected[name].norm()).item()
        assert len(errors) == len(expected) and max(errors.values()) < closer, max(
            errors.items(), key=lambda item: item[1]
        )
