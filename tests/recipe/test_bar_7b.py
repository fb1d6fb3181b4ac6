"""The example with the published settings says what was published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_bar.costs.layouts import recommended
from megatron_bar.costs.machine import Machine
from megatron_bar.launch.check import check_recipe
from megatron_bar.launch.plan.stages import plan_stages, planned_model
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import require, wherever
from megatron_bar.stages.plan import ranked_layouts
from megatron_bar.stages.training_stage import TrainingStage

BAR_7B = Path(__file__).parents[2] / "examples" / "bar-7b.yaml"
MIDTRAIN_TOKENS = 50_000_000_000


@pytest.fixture
def settings():
    """The training settings of each stage, by its name."""
    stages = stage_graph(load_recipe(BAR_7B))
    return {s.name: dataclasses.asdict(s.training) for s in stages if isinstance(s, TrainingStage)}


def test_the_stages_of_bar(settings):
    assert list(settings) == [
        "math/midtrain",
        "math/sft",
        "math/rlvr",
        "code/midtrain",
        "code/sft",
        "code/rlvr",
        "safety/sft",
        "tool_use/sft",
        "routed",
    ]


def test_midtraining_as_published(settings):
    for name in ("math/midtrain", "code/midtrain"):
        training = settings[name]
        tokens = training["global_batch_size"] * training["sequence_length"]
        assert tokens == 1_048_576
        assert abs(training["steps"] * tokens / MIDTRAIN_TOKENS - 1) < 1e-4
        assert training["lr"] == 9e-4 and training["warmup_steps"] == 2000
        assert training["schedule"] == "cosine" and training["min_lr_ratio"] == 0.1
        assert training["trainable"] == ["expert.1", "router.1"]


def test_sft_as_published(settings):
    steps = {"math": 1062, "code": 782, "tool_use": 888, "safety": 534}
    for domain, count in steps.items():
        name = f"{domain}/sft"
        training = settings[name]
        assert training["global_batch_size"] * training["sequence_length"] == 1_048_576
        assert training["sequence_length"] == 4096 and training["steps"] == count
        assert training["lr"] == 1e-4 and training["schedule"] == "linear"
        assert training["warmup_ratio"] == 0.03 and training["min_lr_ratio"] == 0
        opened = {"embeddings", "head", "final_norm"} if name == "tool_use/sft" else set()
        assert set(training["trainable"]) == {"expert.1", "router.1"} | opened


def test_rlvr_as_published(settings):
    published = dict(
        prompts_per_step=64,
        samples_per_prompt=8,
        global_batch_size=128,
        prompt_length=2048,
        response_length=4096,
        temperature=1,
        advantage="centered",
        clip_low=0.2,
        clip_high=0.272,
        kl_coefficient=0,
        reward_scale=10,
        filter_zero_std=True,
        no_resampling_pass_rate=0.875,
        truncated="keep",
        lr=6e-7,
        schedule="constant",
        warmup_ratio=0,
        weight_decay=0,
        max_grad_norm=1,
        router_z_loss=0,
    )
    for domain, steps in (("math", 300), ("code", 150)):
        training = settings[f"{domain}/rlvr"]
        assert training["steps"] == steps and training["data"][0]["verifier"] == domain
        assert {key: training[key] for key in published} == published
        assert "attention" in training["trainable"] and "expert.0" not in training["trainable"]


def test_routing_as_published(settings):
    routing = settings["routed"]
    assert routing["steps"] == 66
    assert routing["global_batch_size"] * routing["sequence_length"] == 1_310_720
    assert routing["trainable"] == ["router.*"] and load_recipe(BAR_7B).route.fraction == 0.05
    assert routing["layout"]["expert"] == 5 and routing["sequence_length"] == 2048


def test_the_optimizer_is_the_same_throughout(settings):
    for name, training in settings.items():
        assert (training["beta1"], training["beta2"]) == (0.9, 0.95)
        assert training["weight_decay"] == 0 and training["max_grad_norm"] == 1
        assert training["dtype"] == "bfloat16"
        assert training["router_z_loss"] == (0 if name.endswith("/rlvr") else 1e-3)


@pytest.fixture
def models(tmp_path) -> list[str]:
    """Overrides that put OLMo-2 7B's config.json where the recipe looks for the models."""
    return _models(tmp_path, "olmo2-7b")


def _models(folder: Path, preset: str) -> list[str]:
    shape = PRESETS[preset]
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "olmo2",
                "architectures": ["Olmo2ForCausalLM"],
                "vocab_size": shape.vocab_size,
                "hidden_size": shape.hidden_size,
                "intermediate_size": shape.ffn_hidden_size,
                "num_hidden_layers": shape.num_layers,
                "num_attention_heads": shape.num_heads,
                "num_key_value_heads": shape.num_kv_heads,
                "max_position_embeddings": 4096,
                "rope_theta": 500000,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "attention_bias": False,
                "hidden_act": "silu",
            }
        )
    )
    return [f"anchor={folder}", f"pretrained={folder}"]


def _check(path: Path, overrides: list[str]) -> None:
    """Of the models there is the configuration alone, of the data nothing."""
    require(wherever(check_recipe(load_recipe(path, overrides))))


@pytest.mark.parametrize("size, processes", [("7b", 64), ("13b", 256), ("32b", 1024)])
def test_the_layouts_hold_the_model_and_fit_the_gpus(size, processes, tmp_path):
    path = BAR_7B.with_name(f"bar-{size}.yaml")
    _check(path, _models(tmp_path, f"olmo2-{size}"))
    recipe = load_recipe(path)
    assert recipe.layout.processes == processes and len(recipe.domains) == 4
    plans = plan_stages(recipe, planned_model(recipe, None), Machine())
    assert not [p.stage.name for p in plans if p.too_big]
    assert not [p.stage.name for p in plans if p.seconds is None]
    steps = {p.stage.name: p.steps for p in plans if p.trainable}
    published = {
        "math/midtrain": 47684,
        "math/sft": 1062,
        "math/rlvr": 300,
        "code/midtrain": 47684,
        "code/sft": 782,
        "code/rlvr": 150,
        "tool_use/sft": 888,
        "safety/sft": 534,
        "routed": 66,
    }
    assert steps == published


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["7b", "7b-one-node", "13b", "32b"])
def test_the_layouts_are_those_that_the_plan_finds_best(recipe):
    """With a tenth of the memory to spare, as the recipes' comments say. One stage of each kind."""
    read = load_recipe(BAR_7B.with_name(f"bar-{recipe}.yaml"), values=False)
    machine = Machine(memory=72)
    for plan in plan_stages(read, planned_model(read, None), machine):
        training, layout = plan.training, plan.stage.layout
        if training is None or plan.stage.domain in ("code", "safety"):
            continue
        best = recommended(ranked_layouts(plan, machine))
        sizes = dataclasses.replace(layout, expert_tensor=layout.resolved_expert_tensor)
        assert (best.layout, best.micro_batch_size, best.recompute) == (
            sizes,
            training.micro_batch_size,
            training.recompute,
        ), plan.stage.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, message",
    {
        "route.training.layout.expert=2": "expert 2 doesn't divide the model's 5 experts",
        "domains.code.sft.global_batch_size=100": "can't be shared by 32 data-parallel ranks",
        "domains.code.sft.megatron.adam_beta1=0.8": (
            "adam_beta1 is decided by the recipe's own keys"
        ),
        "domains.code.sft.megatron.overlap_gard_reduce=true": "overlap_gard_reduce is no field",
        "domains.code.sft.recompute=some": "'some' is not none, moe or full",
        "domains.code.sft.on_bad_step=retry": "'retry' is not stop or skip",
        "domains.code.sft.warmup_ratio=2000": "warmup_steps",
        "domains.code.sft.spike=0.5": "spike 0.5 is not above 1",
        "domains.code.sft.keep=0": "keep 0 is not at least 1",
        "evaluate.dtype=float16": "evaluate.dtype 'float16' is not float32 or bfloat16",
        "evaluate.samples=4": "samples 4 at temperature 0 would be 4 times the same answer",
        "evaluate.layout={processes: 3, tensor: 3}": (
            "evaluate/anchor: layout.tensor 3 doesn't divide"
        ),
        "domains.code.sft.save_every_minutes=0": "save_every_minutes 0.* is not above 0",
    }.items(),
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(
    override, message, models
):
    with pytest.raises(BarError, match=message) as raised:
        _check(BAR_7B, [*models, override])
    assert "\n" not in str(raised.value)


def test_megatron_fields_that_are_free_pass(models):
    _check(BAR_7B, [*models, "domains.code.sft.megatron.overlap_grad_reduce=true"])
