"""DPO through the public command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.data import toy
from megatron_bar.stages.context import read_done
from megatron_bar.training.metrics import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

_TRAINING = dict(sequence_length=96, global_batch_size=8, micro_batch_size=4, lr=3e-3)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """All domains at once, by the method whose published form has DPO."""
    items = toy.conversations("math", "train", 24, 0)
    answers = [item["messages"][-1]["content"] for item in items]
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps(
                {"prompt": item["messages"][:-1], "chosen": answer, "rejected": f"no {answer}"}
            )
            + "\n"
            for item, answer in zip(items, answers)
        )
    )
    path = tmp_path / "mini.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "mini",
                "runs": str(tmp_path / "runs"),
                "method": "retrain",
                "export": False,
                "pretrain": {
                    "vocab_size": 600,
                    "chat": [{"toy": "general", "count": 60}],
                    "training": dict(
                        **_TRAINING,
                        steps=4,
                        data=[{"toy": "general", "count": 60, "name": "prose"}],
                    ),
                },
                "domains": {
                    "math": {
                        "dpo": dict(
                            _TRAINING,
                            data=[{"path": "pairs.jsonl"}],
                            epochs=2,
                            log_every=1,
                            micro_batch_size=2,
                            layout={"processes": 2},
                        )
                    }
                },
            }
        )
    )
    return path


def test_a_policy_that_was_stopped_learns_to_prefer_against_the_same_reference(recipe, tmp_path):
    folder = tmp_path / "runs" / "mini" / "all" / "dpo"
    assert main(["run", str(recipe), "domains.math.dpo.stop_after_minutes=1e-9"]) == 75
    reference = folder / "reference.json"
    assert len(json.loads(reference.read_text())) == 2 * 24  # its rows: two epochs of the pairs
    reference.write_text(reference.read_text() + " ")  # a mark: it isn't asked again
    assert main(["run", str(recipe)]) == 0
    assert reference.read_text().endswith(" ")
    done, metrics = read_done(folder), read_metrics(folder)
    assert done["steps"] == len(metrics) == 6
    assert "DPO" in (tmp_path / "runs" / "mini" / "report.html").read_text()
    # The policy is the reference before the first update: every margin is 0, the loss log 2.
    assert metrics[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert metrics[-1]["reward_accuracy"] > 0.8 and metrics[-1]["reward_margin"] > 0.1


@pytest.mark.parametrize(
    "override, message",
    [
        ("data=[{toy: math, count: 9}]", "toy math 1: column 'chosen' is missing"),
        ("beta=0", "domains.math.dpo: beta 0.0 is not above 0"),
        ("validation=[{toy: math, count: 9}]", "all/dpo: validation measures the loss of tokens"),
        ("layout={processes: 2, context: 2}", "all/dpo: layout.context is 2, and a pair's answers"),
    ],
)
def test_what_can_not_work_is_reported_before_anything_runs(
    recipe, tmp_path, capsys, override, message
):
    assert main(["run", str(recipe), f"domains.math.dpo.{override}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
