"""What a rehearsal makes smaller: layouts, models and their folders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.hf import hf_config, model_config_from_hf
from megatron_bar.checkpoints.hf_weights import INDEX, HfReader
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE, texts
from megatron_bar.launch.check import check_recipe
from megatron_bar.launch.rehearse.fold import folded, lost_kinds
from megatron_bar.launch.rehearse.folder import write_small_folder
from megatron_bar.launch.rehearse.rewrite import SmallRun, rewritten
from megatron_bar.launch.rehearse.shrink import shrunken
from megatron_bar.methods import METHODS, stage_graph
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.models.presets import PRESETS
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.training_stage import TrainingStage
from tests.models_hf import DENSE, random_model

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDS = [
    (Layout(64, expert=2), 4, "tp1 pp1 ep2 dp2", []),
    (Layout(256, tensor=2, expert=2), 4, "tp2 pp1 ep2 dp2", []),
    (Layout(1024, tensor=8, expert=2), 4, "tp2 pp1 ep2 dp2", []),
    (Layout(1024, tensor=8, expert=2), 2, "tp2 pp1 ep2 dp1", ["data"]),
    (Layout(64, tensor=8, pipeline=4, context=2), 8, "tp2 pp2 ep1 dp1 cp2", []),
    (Layout(64, tensor=8, pipeline=4, context=2), 4, "tp2 pp2 ep1 dp1", ["context"]),
    (Layout(40, expert=5), 5, "tp1 pp1 ep5 dp5", []),
    (Layout(40, expert=5), 4, "tp1 pp1 ep1 dp2", ["expert"]),
    (Layout(4, tensor=4), 4, "tp4 pp1 ep1 dp1", []),
    (Layout(8), 1, "tp1 pp1 ep1 dp1", ["data"]),
]


@pytest.mark.parametrize("layout, ranks, expected, lost", FOLDS)
def test_a_fold_keeps_the_kinds_of_parallelism_that_there_are_ranks_for(
    layout, ranks, expected, lost
):
    fold = folded(layout, ranks)
    fold.check()
    assert fold.processes <= ranks
    assert (str(fold), lost_kinds(layout, fold)) == (expected, lost)


@pytest.mark.parametrize("preset", ["olmo2-7b", "olmo2-32b", "olmo3-7b", "qwen3-4b"])
@pytest.mark.parametrize("layout", [Layout(), Layout(4, tensor=4), Layout(6, tensor=2, pipeline=3)])
def test_a_shrunken_model_is_like_the_real_one(preset, layout):
    real = PRESETS[preset]
    small = shrunken(real, [layout], window=64)
    model = small.model
    model.check(layout)
    assert model.hidden_size < 400 and model.num_layers <= 3 == max(3, len(small.layers))
    assert model.num_heads // model.num_kv_heads == real.num_heads // real.num_kv_heads
    assert model.num_kv_heads > 1 and model.hidden_size % model.num_heads == 0
    assert (model.head_dim * model.num_heads > model.hidden_size) == (
        real.head_dim * real.num_heads > real.hidden_size
    )
    for same in (
        "vocab_size",
        "norm_placement",
        "qk_norm",
        "tied_embeddings",
        "family",
        "rope_theta",
        "rms_norm_eps",
        "max_position_embeddings",
    ):
        assert getattr(model, same) == getattr(real, same)
    if real.window is not None:
        full = model.window.full_layers
        assert 0 < len(full) < model.num_layers
        assert [small.layers[i] in real.window.full_layers for i in range(model.num_layers)] == [
            i in full for i in range(model.num_layers)
        ]


def _real(folder, model):
    """A folder as a user has it: bf16 with norms in fp32, in shards."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if "norm" in name else torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20KB")
    words = list(texts("general", "train", 20, 0))
    train_tokenizer(words, 320, folder, CHAT_TEMPLATE)
    return folder


@pytest.mark.parametrize("make", [partial(random_model, name) for name in DENSE], ids=DENSE)
def test_a_small_folder_has_the_real_ones_dtypes_and_corners_in_shards(make, tmp_path):
    real = _real(
        tmp_path / "real", make(num_hidden_layers=5, hidden_size=192, intermediate_size=320)
    )
    small = shrunken(model_config_from_hf(real), [Layout()], window=4)
    description = write_small_folder(tmp_path / "small", small, real, None, "seed")
    assert description == "corners of the real tensors in bfloat16 and float32"
    theirs, ours = HfReader(real), HfReader(tmp_path / "small")
    assert len(set(json.loads((tmp_path / "small" / INDEX).read_text())["weight_map"].values())) > 1
    for name in ours.names:
        tensor = ours.read(name)
        assert tensor.dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
    last = ours.read("model.layers.1.mlp.down_proj.weight")
    real_layer = small.layers[1]
    corner = theirs.read(f"model.layers.{real_layer}.mlp.down_proj.weight")
    assert torch.equal(last, corner[: last.shape[0], : last.shape[1]])
    assert model_config_from_hf(tmp_path / "small") == small.model
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert model.config.architectures == [type(make()).__name__]


def test_a_folder_from_a_config_alone_is_random_by_its_seed(tmp_path):
    source = tmp_path / "config"
    source.mkdir()
    config = hf_config(PRESETS["olmo2-7b"], torch.float16, {"eos_token_id": 0}) | {"extra": "kept"}
    (source / "config.json").write_text(json.dumps(config))
    small = shrunken(PRESETS["olmo2-7b"], [Layout()], window=4)
    with pytest.raises(BarError, match=r"has no tokenizer\.json here; give --tokenizer"):
        write_small_folder(tmp_path / "none", small, source, None, "a")
    train_tokenizer(["some words"], 300, tmp_path / "tokenizer", CHAT_TEMPLATE)
    for name, seed in (("first", "a"), ("again", "a"), ("other", "b")):
        description = write_small_folder(
            tmp_path / name, small, source, tmp_path / "tokenizer", seed
        )
        assert description == "random in float16"
    first, again, other = (
        HfReader(tmp_path / name).read("model.layers.1.mlp.up_proj.weight")
        for name in ("first", "again", "other")
    )
    assert first.dtype == torch.float16 and torch.equal(first, again)
    assert not torch.equal(first, other)
    written = json.loads((tmp_path / "first" / "config.json").read_text())
    assert written["extra"] == "kept" and written["vocab_size"] == 100_352


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_rewritten_recipe_is_one_that_stages_can_read(method, tmp_path):
    """It goes through the checks of a recipe's keys again, as every rank reads it."""
    recipe = load_recipe(EXAMPLES / "systems" / f"{method}.yaml")
    first, second = list(recipe.domains.values())[:2]
    longer = {id(first.sft.data[0]): 90, id(second.sft.data[0]): 250}
    small = SmallRun(tmp_path, "small", 4, 64, lambda source, kind: longer.get(id(source), 0))
    short = rewritten(recipe, small)
    save_recipe(short, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == short
    check_recipe(short)
    stages = stage_graph(short)
    assert [stage.name for stage in stages] == [stage.name for stage in stage_graph(recipe)]
    lengths = {
        stage.name: stage.training.sequence_length
        for stage in stages
        if isinstance(stage, TrainingStage)
    }
    assert {name: length for name, length in lengths.items() if name.endswith("sft")} == {
        name: min(256, stage.training.sequence_length)
        for stage in stage_graph(recipe)
        if (name := stage.name).endswith("sft")
    }


@pytest.mark.parametrize("key", ["rollout_nodes=1", "rollout_sleep=true", "rollouts_ahead=1"])
def test_a_rehearsal_generates_in_process(key, tmp_path):
    keys = [key, "rollout_python=envs/vllm/bin/python", "truncated_importance_sampling=2"]
    recipe = load_recipe(EXAMPLES / "toy-rl.yaml", [f"domains.code.rlvr.{one}" for one in keys])
    short = rewritten(recipe, SmallRun(tmp_path, "small", 4, 64))
    stage = next(stage for stage in stage_graph(short) if isinstance(stage, RlvrStage))
    assert not stage.training.served and not stage.server_nodes
    check_settings(stage.training, stage.layout)
