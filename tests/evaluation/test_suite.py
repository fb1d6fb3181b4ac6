"""The paper's suite: what is in it, and what scores amount to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.evaluation.harness import configuration, read_scores
from megatron_bar.evaluation.suite import group_scores, load_suite
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

# facts of the paper: its seven categories and their benchmarks
PAPER = {
    "knowledge": 3,
    "reasoning": 4,
    "chat": 2,
    "math": 2,
    "code": 2,
    "tool use": 1,
    "safety": 5,
}
HAS = [
    "MMLU",
    "BBH",
    "GPQA",
    "AGIEval English",
    "IFEval",
    "GSM8K",
    "Minerva MATH",
    "HumanEval+",
    "MBPP+",
]


def test_the_papers_benchmarks():
    suite = load_suite("paper")
    counts = {c: sum(b.category == c for b in suite.benchmarks) for c in suite.categories}
    assert counts == PAPER and len(suite.benchmarks) == 19
    assert [b.name for b in suite.benchmarks if b.task] == HAS
    assert all(b.task or b.missing for b in suite.benchmarks)


def test_categories_are_plain_means_and_say_what_they_lack():
    suite = load_suite("paper")
    measured = {
        "MMLU": {"score": 0.6, "items": 9},
        "BBH": {"score": 0.4, "items": 5},
        "GPQA": {"score": 0.2, "items": 500},
        "GSM8K": {"score": 0.5, "items": 2},
        "Minerva MATH": {"score": 0.1, "items": 3},
    }
    left_out = {b.name: "no" for b in suite.benchmarks if b.name not in measured}
    scores = group_scores(suite, measured, left_out)
    assert scores["categories"]["reasoning"]["score"] == pytest.approx(0.3)
    assert scores["categories"]["reasoning"]["missing"] == {
        "ZebraLogic": "no",
        "AGIEval English": "no",
    }
    assert scores["categories"]["math"]["complete"]
    assert scores["categories"]["safety"]["score"] is None
    assert scores["overall"] == pytest.approx((0.6 + 0.3 + 0.3) / 3) and not scores["complete"]


def test_a_group_is_weighted_by_items():
    mmlu = next(b for b in load_suite("paper").benchmarks if b.name == "MMLU")
    key = mmlu.metric
    results = {
        "group_subtasks": {mmlu.task: ["stem", "law"], "stem": ["physics", "maths"]},
        "results": {"physics": {key: 1.0}, "maths": {key: 0.0}, "law": {key: 0.5}},
        "n-samples": {
            "physics": {"effective": 1},
            "maths": {"effective": 3},
            "law": {"effective": 4},
        },
    }
    found = read_scores(results, [mmlu])["MMLU"]
    assert found["score"] == pytest.approx(3 / 8) and found["items"] == 8
    del results["results"]["law"][key]
    with pytest.raises(BarError, match="law has no metric"):
        read_scores(results, [mmlu])


def test_lm_evals_configuration():
    suite = load_suite("paper")
    chosen = [b for b in suite.benchmarks if b.name in ("GSM8K", "HumanEval+")]
    settings = Evaluate(dtype="bfloat16", batch_size=16, layout=Layout(4, tensor=4))
    config = configuration(suite, chosen, Path("/models/m"), settings, "vllm", 10)
    assert config["model"] == "vllm" and config["tasks"] == ["gsm8k_cot", "humaneval_plus"]
    assert config["model_args"] == {
        "pretrained": "/models/m",
        "dtype": "bfloat16",
        "tensor_parallel_size": 4,
    }
    assert config["apply_chat_template"] and config["limit"] == 10
    assert config["confirm_run_unsafe_code"]
    safe = configuration(suite, chosen[:1], Path("m"), settings, "hf", None)
    assert "confirm_run_unsafe_code" not in safe and "tensor_parallel_size" not in str(safe)


@pytest.mark.parametrize(
    "content, message",
    [
        ("categories: {math: {GSM8K: {task: a}}}", "GSM8K has either task and metric or missing"),
        ("categories: {math: {GSM8K: {taks: a}}}", "taks"),
        ("categories: [", "suite"),
        ("a: 1", "categories"),
    ],
)
def test_broken_suites(content, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(BarError, match=message) as raised:
        load_suite(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--suite", "papers"], "'papers' is unknown; there are paper"),
        (["--suite", "paper"], "neither a run that exported its model nor a Hugging Face folder"),
        (["--suite", "paper", "temperature=1"], "leave --task, --recipe, temperature"),
        (["--suite", "paper", "opt_out=[math]"], "samples and opt_out out"),
    ],
)
def test_what_the_suite_refuses(arguments, message, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_without_lm_eval(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    command = ["evaluate", str(tmp_path), "--suite", "paper", "--out", str(tmp_path / "out")]
    assert main([*command, "--python", "/nowhere/python"]) == 1
    assert "/nowhere/python can't be run" in capsys.readouterr().err


def test_code_that_models_write_is_run_only_if_that_is_said(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    python = tmp_path / "python"  # an environment with lm-eval
    python.write_text('#!/bin/sh\necho \'{"lm-eval": "0.4.13"}\'\n')
    python.chmod(0o755)
    command = [
        "evaluate",
        str(tmp_path),
        "--suite",
        "paper",
        "--dry-run",
        "--python",
        str(python),
        "--out",
        str(tmp_path / "out"),
    ]
    for words, runs_code in (([], False), (["--run-code"], True)):
        assert main([*command, *words]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert ("humaneval_plus" in config["tasks"]) == runs_code
        assert config.get("confirm_run_unsafe_code", False) == runs_code
