"""The models that a recipe starts from: sizes without weights, weights before anything is done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.hf import hf_config
from megatron_bar.checkpoints.hub import local_folder
from megatron_bar.checkpoints.manifest import Manifest
from megatron_bar.cli import main
from megatron_bar.launch.starts import dense_model, start_tokenizer
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.methods.run import run_stage
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json
from megatron_bar.stages.context import is_done, read_done
from tests import hub
from tests.models_hf import TALKING, random_dense, talking

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = "org/model"


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory) -> Path:
    return talking(random_dense(**TALKING), tmp_path_factory.mktemp("starts") / "hf")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    hub.use_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def _recipe(anchor: str, **more):
    stage = {
        "steps": 1,
        "sequence_length": 64,
        "global_batch_size": 2,
        "data": [{"toy": "math", "count": 4}],
    }
    Path("recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "mine",
                "anchor": anchor,
                "domains": {"math": {"sft": stage}},
                "route": {"training": stage | {"data": []}},
                **more,
            }
        )
    )
    return load_recipe(Path("recipe.yaml"))


def test_sizes_need_no_weights(cache, hf_dir):
    expected = dense_model(_recipe(str(hf_dir)))
    hub.cached(cache, NAME, hf_dir, ["config.json", "tokenizer.json", "tokenizer_config.json"])
    assert dense_model(_recipe(NAME)) == dense_model(_recipe(f"{NAME}@main")) == expected
    assert len(start_tokenizer(_recipe(NAME))) == 400
    assert dense_model(_recipe("someone/OLMo-2-1124-7B-mine@v2")) == PRESETS["olmo2-7b"]
    with pytest.raises(BarError, match="download it first with: hf download org/other"):
        dense_model(_recipe("org/other"))
    with pytest.raises(BarError, match=r"org/model and .* are models of different shape"):
        dense_model(_recipe("someone/OLMo-2-1124-7B", pretrained=NAME))


def test_the_pretrained_model_may_know_fewer_positions(cache, tmp_path):
    """As Qwen3-8B-Base does, from which Qwen3-8B was made."""
    models = {
        "post": PRESETS["qwen3-8b"],
        "base": replace(PRESETS["qwen3-8b"], max_position_embeddings=32_768),
    }
    for name, model in models.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", hf_config(model, torch.bfloat16, {}))
    recipe = _recipe(str(tmp_path / "post"), pretrained=str(tmp_path / "base"))
    assert dense_model(recipe) == models["post"]


@pytest.mark.parametrize("size", ["7b", "13b", "32b"])
def test_a_laptop_prints_the_scripts_of_the_published_recipe(size, cache, capsys):
    assert main(["submit", str(EXAMPLES / f"bar-{size}.yaml"), "--dry-run"]) == 0
    assert "===== anchor" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "submit"])
def test_weights_are_asked_for_before_anything_is_done(command, cache, hf_dir, capsys, tmp_path):
    hub.cached(
        cache,
        NAME,
        hf_dir,
        ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(hf_dir / "config.json", bare / "config.json")
    for anchor, message in {
        NAME: "model.safetensors is not in the hub's cache; download it first with: hf download",
        str(bare): "lacks the weights, model.safetensors",
    }.items():
        _recipe(anchor)
        assert main(["submit", "recipe.yaml", "--dry-run"]) == 0
        capsys.readouterr()
        assert main([command, "recipe.yaml"]) == 1
        assert message in capsys.readouterr().err
        assert not list(Path("runs").glob("**/stage.json"))


def test_an_import_is_pinned_to_its_commit(cache, hf_dir, tmp_path):
    older, newer = "a" * 40, "b" * 40
    hub.cached(cache, NAME, hf_dir, commit=older)
    recipe = _recipe(NAME)
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    save_recipe(recipe, run / "recipe.yaml")
    run_stage(run, "anchor")
    done = read_done(run / "anchor")
    assert (done["source"], done["commit"]) == (NAME, older)
    # The hub's model has moved on to another size, then the cache is gone: the run goes on with
    # what it has imported.
    random_dense(**TALKING | {"num_hidden_layers": 2}).save_pretrained(tmp_path / "changed")
    hub.cached(cache, NAME, tmp_path / "changed", commit=newer)
    assert local_folder(NAME).name == newer
    stage = next(s for s in stage_graph(recipe) if s.name == "anchor")
    for _ in range(2):
        assert is_done(stage, run) and dense_model(recipe).num_layers == 4
        assert len(start_tokenizer(recipe)) == 400
        shutil.rmtree(cache, ignore_errors=True)


def test_a_job_downloads_nothing(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    save_recipe(_recipe(NAME), run / "recipe.yaml")
    with pytest.raises(BarError, match="hub's cache; download it first with: hf download org/mod"):
        run_stage(run, "anchor")


@pytest.mark.distributed
def test_evaluate_imports_a_hugging_face_model_first(cache, hf_dir, tmp_path, capsys):
    Path("items.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}) + "\n"
    )
    hub.cached(cache, NAME, hf_dir)
    import_hf(hf_dir, tmp_path / "checkpoint")
    answers = {}
    for number, model in enumerate((str(tmp_path / "checkpoint"), str(hf_dir), NAME)):
        out = tmp_path / f"out{number}"
        assert (
            main(
                [
                    "evaluate",
                    model,
                    "--task",
                    "q=items.jsonl:math",
                    "max_new_tokens=4",
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        assert json.loads((out / "results.json").read_text())["model"] == model
        answers[model] = (out / "answers.jsonl").read_text()
    assert len(set(answers.values())) == 1
    assert not list(tmp_path.glob(".megatron-bar-*")) and Manifest.of(hf_dir) is None
    assert main(["evaluate", "nowhere", "--task", "q=items.jsonl:math"]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err
