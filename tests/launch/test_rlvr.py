"""RLVR through the public command, with the default backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.launch import processes
from megatron_bar.rlvr.backends import backend_of
from megatron_bar.stages.context import read_done
from megatron_bar.stages.rlvr import RLVR_GROUPS
from megatron_bar.training.metrics import read_metrics
from tests.test_extending import added

if module := backend_of(None).PRELOAD:
    processes.preload(module)
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

_TRAINING = dict(sequence_length=96, global_batch_size=8, micro_batch_size=4, lr=3e-3, log_every=2)
_RLVR = dict(
    data=[{"toy": "math", "count": 40}],
    steps=3,
    prompts_per_step=4,
    samples_per_prompt=4,
    global_batch_size=8,
    micro_batch_size=2,
    response_length=10,
    lr=1e-4,
    layout={"processes": 2, "expert": 2},
)


def _recipe(runs: Path) -> dict:
    return {
        "name": "mini",
        "runs": str(runs),
        "pretrain": {
            "vocab_size": 600,
            "chat": [{"toy": "general", "count": 200}],
            "training": dict(
                **_TRAINING, steps=6, data=[{"toy": "general", "count": 100, "name": "prose"}]
            ),
        },
        "domains": {
            "math": {
                "sft": dict(**_TRAINING, steps=4, data=[{"toy": "math", "count": 80}]),
                "rlvr": _RLVR,
            }
        },
        "route": {"fraction": 0.5, "training": dict(**_TRAINING, steps=2)},
        "evaluate": {
            "general": [{"toy": "general", "split": "heldout", "count": 4}],
            "max_new_tokens": 8,
        },
    }


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump(_recipe(tmp_path / "runs")))
    return path


def test_a_recipe_goes_through_rlvr_and_keeps_the_anchor(recipe, tmp_path):
    assert main(["run", str(recipe)]) == 0
    folder = tmp_path / "runs" / "mini" / "math" / "rlvr"
    done = read_done(folder)
    assert set(done["open_groups"]) == set(RLVR_GROUPS)
    assert done["anchor_digest"]["before"] == done["anchor_digest"]["after"]
    metrics = read_metrics(folder)
    assert [m["step"] for m in metrics] == [1, 2, 3]
    for m in metrics:
        assert 0 <= m["reward"] == m["reward/toy/math"] <= 1
        assert 0 < m["response_length"] <= 10 and 0 <= m["truncated"] <= 1
        assert m["rollout_logprob_gap_max"] < 1e-3
        parts = ("rollout", "logprobs", "verification", "update")
        assert 0 < sum(m[f"seconds_{part}"] for part in parts) <= m["seconds_step"]
        assert 0 <= m["waiting_share"] == m["seconds_verification"] / m["seconds_step"] < 1
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 and set(samples[0]) == {
        "step",
        "verifier",
        "prompt",
        "response",
        "reward",
    }
    assert (tmp_path / "runs" / "mini" / "merged" / "stage.json").is_file()


_MINE = """
def score(prompt, response, reference):
    if response == "1":
        return 1
    raise ValueError("who knows")
"""


def test_a_dense_model_is_reinforced_with_every_parameter_by_a_verifier_of_ones_own(
    recipe, tmp_path, monkeypatch
):
    """It fails on nearly all answers, and ends nothing by that."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(_MINE)
    source = "toy: math, count: 4, verifier: mine.py:score"
    assert (
        main(
            [
                "run",
                str(recipe),
                "method=continued",
                "domains.math.rlvr.steps=1",
                "domains.math.rlvr.layout.expert=1",
                f"domains.math.rlvr.data=[{{{source}}}]",
                f"domains.math.tasks=[{{{source}, split: heldout}}]",
            ]
        )
        == 0
    )
    run = tmp_path / "runs" / "mini"
    done = read_done(run / "all" / "rlvr")
    assert done["steps"] == 1 and done["frozen"] == 0
    assert {"ffn", "attention", "embeddings"} < set(done["open_groups"])
    assert read_done(run / "hf") is not None
    (metrics,) = read_metrics(run / "all" / "rlvr")
    failed = metrics["verifier_failures"]
    assert failed == 16 * (1 - metrics["reward/mine.py:score"]) and failed > 8
    tasks = json.loads((run / "evaluate" / "all" / "results.json").read_text())["tasks"]
    assert tasks["math"]["verifier_failures"] == 4 * (1 - tasks["math"]["score"])


def test_a_tool_answers_the_policy_which_answers_then(recipe, tmp_path, monkeypatch):
    """The model has learned by heart to call the calculator of docs/extending.md."""
    monkeypatch.chdir(tmp_path)
    Path("calculator.py").write_text(added("examples/calculator.py"))
    call = "<function_calls>2 + 3</function_calls>"
    asked = {"role": "user", "content": "2 + 3?"}
    taught = [
        asked,
        {"role": "assistant", "content": call},
        {"role": "environment", "content": "5"},
        {"role": "assistant", "content": "5"},
    ]
    Path("taught.jsonl").write_text(80 * f"{json.dumps({'messages': taught})}\n")
    Path("sums.jsonl").write_text(4 * f"{json.dumps({'messages': [asked], 'answer': '5'})}\n")
    source = "path: sums.jsonl, verifier: exact, environment: calculator.py:step"
    assert (
        main(
            [
                "run",
                str(recipe),
                "method=continued",
                "domains.math.sft.steps=40",
                "domains.math.sft.data=[{path: taught.jsonl}]",
                "domains.math.rlvr.steps=2",
                f"domains.math.rlvr.data=[{{{source}}}]",
                "domains.math.rlvr.layout.expert=1",
                "domains.math.rlvr.response_length=90",
                "domains.math.rlvr.max_turns=3",
                "domains.math.rlvr.temperature=0.2",
                "domains.math.tasks=[]",
            ]
        )
        == 0
    )
    folder = tmp_path / "runs" / "mini" / "all" / "rlvr"
    for line in read_metrics(folder):
        assert line["verifier_failures"] == 0 and line["rollout_logprob_gap_max"] < 1e-3
        assert line["turns"] > 1 and line["reward"] > 0
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["response"]
    assert sample.startswith(call) and "environment\n5" in sample


def test_a_stage_that_has_nothing_to_learn_from_saves_and_says_so(recipe, tmp_path, capsys):
    """Cut after one token, no answer is worth anything, so the optimizer takes no step."""
    changes = ("truncated=zero", "response_length=1", "save_every=1", "steps=2", "layout.expert=1")
    assert (
        main(
            [
                "run",
                str(recipe),
                "method=continued",
                *(f"domains.math.rlvr.{change}" for change in changes),
            ]
        )
        == 0
    )
    done = read_done(tmp_path / "runs" / "mini" / "all" / "rlvr")
    assert (done["updates"], done["reward"]) == (0, 0)
    assert "- warning: nothing was learned, in 2 steps all answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, message",
    [
        ("advantage=best", "math/rlvr: advantage is 'best'; there are centered, grpo, rloo"),
        ("samples_per_prompt=1", "math/rlvr: samples_per_prompt is 1"),
        ("temperature=0", "math/rlvr: temperature is 0"),
        ("global_batch_size=12", "math/rlvr: global_batch_size 12 doesn't fit"),
        ("trainable=[all_shared]", "math/rlvr: trainable: 'all_shared' matches no parameter group"),
        ("loss_type=ppo", "loss_type 'ppo' is not dapo, cispo or gspo"),
        (
            "loss_type=gspo",
            "math/rlvr: clip_high is 0.272, which is for ratios of single tokens; with",
        ),
        ("rollouts_ahead=1", "math/rlvr: rollouts_ahead is 1, and the training processes generate"),
        ("rollout_sleep=true", "math/rlvr: rollout_sleep is for servers; give rollout_servers or"),
        (
            "rollout_nodes=1",
            "math/rlvr: rollout_nodes is 1, for servers that the stage starts",
        ),
        ("rollouts_ahead=2", "rollouts_ahead 2 is not 0 or 1"),
        ("backend=nemo", "math/rlvr: backend is 'nemo'; there are nemo_aligner, native"),
        ("data=[{toy: math, count: 9, verifier: maths}]", "math/rlvr: verifier 'maths' is unknown"),
        (
            "data=[{toy: math, count: 9, environment: tool}]",
            "math/rlvr: environment 'tool' is no file; write it as FILE.py:FUNCTION",
        ),
        ("max_turns=0", "max_turns 0 is not at least 1"),
    ],
)
def test_what_can_not_work_is_reported_before_anything_runs(
    recipe, tmp_path, capsys, override, message
):
    assert main(["run", str(recipe), f"domains.math.rlvr.{override}"]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
