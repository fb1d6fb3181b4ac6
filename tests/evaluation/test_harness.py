"""lm-eval run for real, offline, on an exported model, with tasks over real data."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.cli import main
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE, texts
from megatron_bar.evaluation.suite import load_suite
from megatron_bar.runtime.files import read_json
from tests.models_hf import random_experts

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
# Where lm-eval lives in an environment of its own.
PYTHON = os.environ.get("MEGATRON_BAR_LM_EVAL_PYTHON", sys.executable)
ITEMS = 6

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project"),
    pytest.mark.skipif(
        sys.executable == PYTHON and importlib.util.find_spec("lm_eval") is None,
        reason="lm-eval isn't installed: pip install 'megatron-bar[lm-eval]'",
    ),
]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that exported its model: random, of two experts."""
    run, start = tmp_path / "run", tmp_path / "start"
    tokenizer = train_tokenizer(list(texts("general", "train", 40, 0)), 320, start, CHAT_TEMPLATE)
    model = random_experts(2, vocab_size=len(tokenizer), max_position_embeddings=1024)
    model.save_pretrained(start)
    import_hf(start, tmp_path / "checkpoint")
    (run / "hf").mkdir(parents=True)
    export_hf(tmp_path / "checkpoint", run / "hf" / "model")
    return run


@pytest.fixture
def suite(tmp_path) -> str:
    """Written answers to GSM8K, and a choice that even a random model is at times right about."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = {
        "dataset_path": "json",
        "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(SHARED / "math" / "gsm8k_test.jsonl")}},
    }
    (folder / "written.yaml").write_text(
        yaml.safe_dump(
            data
            | {
                "task": "bar_written",
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer.split('####')[-1].strip()}}",
                "generation_kwargs": {"until": ["Q:"], "do_sample": False},
                "metric_list": [{"metric": "exact_match"}],
            }
        )
    )
    for place, name in enumerate(("chosen", "turned")):
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(
                data
                | {
                    "task": f"bar_{name}",
                    "output_type": "multiple_choice",
                    "doc_to_text": "{{question}}",
                    "doc_to_choice": ["yes", "no"],
                    "doc_to_target": place,
                    "metric_list": [{"metric": "acc"}],
                }
            )
        )
    (folder / "both.yaml").write_text(
        yaml.safe_dump({"group": "bar_both", "task": ["bar_chosen", "bar_turned"]})
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "tasks": "tasks",
                "settings": {"apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 4}},
                "categories": {
                    "math": {"GSM8K": {"task": "bar_written", "metric": "exact_match,none"}},
                    "choice": {
                        "both": {"task": "bar_both", "metric": "acc,none"},
                        "other": {"missing": "not written yet"},
                    },
                },
            }
        )
    )
    return str(path)


def test_lm_eval_offline(run, suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    command = [
        "evaluate",
        str(run),
        "--suite",
        suite,
        "--python",
        PYTHON,
        "--limit",
        str(ITEMS),
        "batch_size=4",
    ]
    assert main([*command, "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tasks"] == ["bar_both", "bar_written"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "other is missing: not written yet" in shown and "1 of 2 benchmarks" in shown
    folder = run / "suites" / "mine"
    scores = read_json(folder / "scores.json")
    assert scores["limit"] == ITEMS
    assert scores["categories"]["math"]["benchmarks"]["GSM8K"]["items"] == ITEMS
    # Each item is right in one of the two tasks, whose mean weighs them alike.
    both = scores["categories"]["choice"]["benchmarks"]["both"]
    assert both["score"] == pytest.approx(0.5) and both["items"] == 2 * ITEMS
    answers = [
        json.loads(line)
        for path in folder.rglob("samples_bar_written*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert (
        len(answers) == ITEMS
        and "<|im_start|>user" in answers[0]["arguments"]["gen_args_0"]["arg_0"]
    )
    assert main(["report", str(run)]) == 1  # no stage of this run is done


def test_lm_eval_knows_the_papers_tasks():
    code = "from lm_eval.tasks import TaskManager; print('\\n'.join(TaskManager().all_tasks))"
    known = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    tasks = {b.task for b in load_suite("paper").benchmarks if b.task}
    assert tasks <= set(known.stdout.splitlines())


def test_a_failure_is_one_line(run, suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    content = yaml.safe_load(Path(suite).read_text())
    content["categories"]["math"]["GSM8K"]["task"] = "bar_unheard_of"
    Path(suite).write_text(yaml.safe_dump(content))
    assert main(["evaluate", str(run), "--suite", suite, "--python", PYTHON]) == 1
    shown = capsys.readouterr().err
    assert "lm-eval ended with exit status" in shown and len(shown.strip().splitlines()) == 1
    assert not (run / "suites" / "mine").exists()
