"""`megatron-bar serve`: what it prints, and what it says of servers of right and wrong weights."""

from __future__ import annotations

import shlex

import pytest

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.cli import main
from megatron_bar.cli.parser import build_parser
from tests.generation.openai_server import CompletionServer, serving
from tests.models_hf import TALKING, random_experts, talking


def _commands(capsys, *arguments: str) -> list[list[str]]:
    assert main(["serve", *arguments]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_an_export_is_served_as_it_is(two_talking, tmp_path, capsys):
    (command,) = _commands(capsys, str(two_talking), "--port", "9000", "--gpus", "2")
    assert command == [
        "vllm",
        "serve",
        str(two_talking),
        "--served-model-name",
        "hf",
        "--port",
        "9000",
        "--tensor-parallel-size",
        "2",
    ]
    model = tmp_path / "toy" / "hf" / "model"
    model.mkdir(parents=True)
    (command,) = _commands(capsys, str(tmp_path / "toy"), "--name", "mine")
    assert command[2] == str(model) and command[4] == "mine"
    (command,) = _commands(capsys, "allenai/OLMo-2-0425-1B-Instruct@main")
    assert command[2:5] == [
        "allenai/OLMo-2-0425-1B-Instruct@main",
        "--served-model-name",
        "OLMo-2-0425-1B-Instruct",
    ]


def test_a_checkpoint_is_exported_before(two_talking, tmp_path, capsys):
    stage = tmp_path / "my model"
    import_hf(two_talking, stage / "checkpoint")
    export, serve = _commands(capsys, str(stage))
    assert serve[2] == f"{stage}-hf"
    build_parser().parse_args(export[1:])
    assert export[0] == "megatron-bar" and main(export[1:]) == 0
    capsys.readouterr()
    (again,) = _commands(capsys, str(stage))  # there is an export now
    assert again == serve


def test_a_folder_without_a_model_is_told(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 1
    assert "is neither a run that exported its model nor a checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_of_the_model_is_told_from_one_of_another(two_talking, tmp_path, capsys):
    other = talking(random_experts(2, seed=1, **TALKING), tmp_path / "other")
    for folder, status in ((two_talking, 0), (other, 1)):
        with serving(CompletionServer(folder)) as address:
            assert main(["serve", str(two_talking), "--check", f"{address}/v1"]) == status
        shown = capsys.readouterr()
        told = shown.err if status else shown.out
        assert "log-probabilities of 252 tokens are" in told
    assert "doesn't serve" in told and "start the server anew" in told


def test_a_server_that_is_not_there_is_told(two_talking, capsys):
    assert main(["serve", str(two_talking), "--check", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9/v1/models doesn't answer" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--gpus", "--port"])
def test_numbers_below_one_are_refused(option, capsys):
    assert main(["serve", "model", option, "0"]) == 1
    assert f"{option} 0: give at least 1" in capsys.readouterr().err
