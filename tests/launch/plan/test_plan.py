"""Sizes as published, and costs that add up. What is really allocated is in test_memory.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_bar.checkpoints import hf
from megatron_bar.cli import main
from megatron_bar.costs.compute import evaluation_seconds, stage_flops, stage_seconds
from megatron_bar.costs.efficiency import SERVED_SHARE, TOKEN_SECONDS_PER_LAYER
from megatron_bar.costs.fitting import (
    nearest_evaluation_fit,
)
from megatron_bar.costs.machine import Machine
from megatron_bar.costs.memory import (
    evaluation_memory,
    rank_parameters,
    training_memory,
)
from megatron_bar.launch.plan.growth import growth
from megatron_bar.launch.plan.stages import plan_stages, planned_model
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.rlvr import RLVR_GROUPS

ROOT = Path(__file__).parents[3]
GIB = 1 << 30


@pytest.mark.slow
@pytest.mark.parametrize("experts", [None, 2, 5])
@pytest.mark.parametrize("name", ["olmo2-7b", "olmo2-13b", "olmo2-32b", "qwen3-0.6b", "qwen3-8b"])
def test_weights_are_those_of_transformers_models(name, experts):
    model = PRESETS[name] if experts is None else PRESETS[name].with_experts(experts)
    config = hf.hf_config(model, torch.bfloat16, {"pad_token_id": None})
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config), dtype=torch.bfloat16
        )
    size = sum(p.nbytes for p in theirs.parameters())
    assert 2 * sum(rank_parameters(model, Layout()).values()) == size


def test_rlvr_generates_scores_and_keeps_a_reference():
    model, layout = PRESETS["olmo2-7b"].with_experts(2), Layout(32, tensor=2, expert=2)
    free = Rlvr(dtype="bfloat16", steps=3, rollout_batch_size=16, recompute="full", kl_every=0)
    held = dataclasses.replace(free, kl_coefficient=0.1)
    tokens = 3 * 512 * 6144
    work = Work(tokens, tokens * 3072, tokens * 3072)
    once, update = (step_flops(model, work, groups).total for groups in ((), RLVR_GROUPS))
    costs = [stage_flops(model, settings, RLVR_GROUPS, 3) for settings in (free, held)]
    assert costs[0] == pytest.approx(update + 2 * once)
    assert costs[1] - costs[0] == pytest.approx(once)
    alone, beside = (training_memory(model, layout, s, RLVR_GROUPS) for s in (free, held))
    # keys and values of 16 rows in 32 layers of 16 heads of 128
    assert alone.cache == 16 * 6144 * 32 * 2 * 16 * 128 * 2
    assert alone.total == (
        alone.weights + alone.gradients + alone.optimizer + alone.buffers + alone.cache
    )
    # Where expert 1 is, only the anchor's router rows aren't open. Two copies: the start's values,
    # and the policy's own while those stand in their place.
    assert alone.host == 0 and beside.host == 2 * (beside.weights - 2 * 32 * 4096)
    at_times = dataclasses.replace(free, kl_every=4)
    assert training_memory(model, layout, at_times, RLVR_GROUPS) == beside
    assert stage_flops(model, at_times, RLVR_GROUPS, 3) == pytest.approx(costs[0] + once / 4)
    rushed = dataclasses.replace(free, rollout_batch_size=32)
    machine = Machine(mfu=0.35)
    seconds = [stage_seconds(model, layout, s, RLVR_GROUPS, 3, machine) for s in (free, rushed)]
    arithmetic = costs[0] / (32 * 989e12 * 0.35)
    # 512 answers on 16 data-parallel ranks: two batches of 16 of 4096 tokens, in 32 layers each
    generating = 3 * 4096 * 32 * TOKEN_SECONDS_PER_LAYER
    assert seconds[0] == pytest.approx(arithmetic + 2 * generating)
    assert seconds[1] == pytest.approx(arithmetic + generating)
    served = dataclasses.replace(free, rollout_python="vllm/bin/python")
    assert stage_seconds(model, layout, served, RLVR_GROUPS, 3, machine) < seconds[1]


def test_servers_on_nodes_of_their_own_are_a_part_of_the_cost():
    on_nodes = ("rollout_python=p", "rollout_nodes=2", "rollout_options=[-tp, '4']")
    changes = [f"domains.math.rlvr.{change}" for change in on_nodes]
    recipe = load_recipe(ROOT / "examples" / "bar-7b.yaml", changes)
    model, machine = PRESETS["olmo2-7b"], Machine(mfu=0.35)
    plans = {plan.stage.name: plan for plan in plan_stages(recipe, model, machine)}
    plan, same = plans["math/rlvr"], plans["code/rlvr"]  # which generates in process
    assert (plan.gpus, same.gpus) == (32 + 2 * 8, 32)
    assert plan.gpu_hours == pytest.approx(plan.seconds * 48 / 3600)
    assert (plan.memory.cache, same.memory.cache > 0) == (0, True)
    # 512 answers at four servers, at once: each GPU reads a quarter of the weights and of the keys
    # and values for 128 rows at a time, at a third of its memory's rate.
    weights = 2 * sum(rank_parameters(plan.model, Layout(4, tensor=4)).values())
    cache = 128 * (2048 + 4096 / 2) * 32 * 2 * 8 * 128 * 2
    step = 4096 * (weights + cache) / machine.memory_rate / SERVED_SHARE
    training = stage_flops(plan.model, plan.training, plan.open_groups, 300)
    arithmetic = training / (32 * machine.peak("bfloat16") * 0.35)
    assert plan.seconds == pytest.approx(arithmetic + 300 * step)
    recipe.domains["math"].rlvr.rollout_options = ["--tensor-parallel-size=16"]
    with pytest.raises(BarError, match=r"math/rlvr: .*servers of 16 GPUs.* fill a node of 8"):
        plan_stages(recipe, model, machine)


def test_an_evaluation_holds_weights_and_keys_and_takes_the_time_to_read_them():
    model = PRESETS["olmo2-7b"].with_experts(5)
    settings = Evaluate(max_new_tokens=1024, batch_size=16, dtype="bfloat16")
    memory = evaluation_memory(model, Layout(2, tensor=2), settings)
    # halves of 24.6 B parameters, norms in full; 16 rows of 2048 + 1024 in 32 layers of 16 heads
    assert memory.weights == pytest.approx(24.61e9, rel=1e-3)
    assert memory.cache == 16 * 3072 * 32 * 2 * 16 * 128 * 2
    long = dataclasses.replace(settings, max_new_tokens=9999)  # no longer than the model can
    assert evaluation_memory(model, Layout(2, tensor=2), long).cache == memory.cache * 4 // 3
    whole = dataclasses.replace(settings, dtype="float32", batch_size=64)
    assert evaluation_memory(model, Layout(4), whole).total > 80 * GIB
    fits = nearest_evaluation_fit(model, Layout(4), whole, 80 * GIB)
    assert fits.processes == 4 and fits.tensor * fits.pipeline == 4
    assert evaluation_memory(model, fits, whole).total <= 80 * GIB
    assert nearest_evaluation_fit(model, Layout(), whole, 80 * GIB) is None
    # Launches decide, not what is read: half the batches is half the time, half a layer isn't.
    one, two = (
        evaluation_seconds(model, Layout(size), settings, 1600, Machine()) for size in (1, 2)
    )
    split = evaluation_seconds(model, Layout(2, tensor=2), settings, 1600, Machine())
    assert two == pytest.approx(one / 2) and split == pytest.approx(one)


def test_evaluations_are_planned_in_their_own_layout(seven_b):
    layout = {"layout.expert": 2, "layout.tensor": 2}
    recipe = load_recipe(seven_b, [f"{key}={size}" for key, size in layout.items()])
    plans = {p.stage.name: p for p in plan_stages(recipe, planned_model(recipe, None), Machine())}
    sizes = {name: plans[f"evaluate/{name}"].stage.layout for name in ("anchor", "math", "routed")}
    # by default the recipe's, as far as each model's experts can be spread over it
    assert sizes == {
        "anchor": Layout(64, tensor=2),
        "math": Layout(64, tensor=2, expert=2),
        "routed": Layout(64, tensor=2, expert=2),
    }
    recipe = load_recipe(
        seven_b, ["evaluate.layout={processes: 8, tensor: 2}", "evaluate.batch_size=128"]
    )
    plans = {p.stage.name: p for p in plan_stages(recipe, planned_model(recipe, None), Machine())}
    found = plans["evaluate/routed"]
    assert found.stage.layout == Layout(8, tensor=2)
    assert found.too_big and found.suggestion == {"batch_size": 64}


@pytest.fixture
def seven_b(tmp_path) -> Path:
    training = (
        "data: [{path: x.jsonl}], steps: 1000, sequence_length: 4096, "
        "global_batch_size: 256, dtype: bfloat16"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
name: b
anchor: OLMo-2-1124-7B-Instruct
layout: {{processes: 64, tensor: 2, expert: 2}}
domains:
  math: {{midtrain: {{{training}}}, sft: {{{training}}}}}
  code: {{midtrain: {{{training}}}, sft: {{{training}}}}}
  tools: {{sft: {{{training}}}}}
route:
  training: {{steps: 66, sequence_length: 2048, global_batch_size: 640, dtype: bfloat16,
             layout: {{processes: 40, tensor: 2, expert: 4}}}}
evaluate: {{dtype: bfloat16}}
""")
    return path


def test_bar_grows_linearly_and_retraining_quadratically(seven_b):
    recipe = load_recipe(seven_b)
    model, machine = planned_model(recipe, None), Machine()
    plans = plan_stages(recipe, model, machine)
    by_name = {plan.stage.name: plan for plan in plans}
    assert by_name["math/sft"].total == pytest.approx(11.63e9, rel=1e-3)
    assert by_name["routed"].total == pytest.approx(20.28e9, rel=1e-3)
    costs = growth(plans, model, machine)
    assert costs.domains == ("math", "code", "tools")
    assert costs.trained[0] == costs.trained[1] == pytest.approx(2 * costs.trained[2], rel=0.2)
    assert costs.trained[0] == by_name["math/midtrain"].gpu_hours + by_name["math/sft"].gpu_hours
    assert costs.bar[1] < 1.05 * costs.trained[1]  # a router is cheap
    assert costs.monolith == pytest.approx(
        [costs.dense[0], 2 * costs.dense[0], 2 * costs.dense[0] + costs.dense[2]]
    )
    longer = costs.extended(8)
    assert len(longer.bar) == 8 and sum(longer.monolith) > 3 * sum(longer.bar)
    assert costs.upgrade("tools") == (costs.bar[2], costs.monolith[2])


def test_a_plan_is_shown_and_plotted(seven_b, tmp_path, capsys):
    picture = tmp_path / "growth.png"
    assert main(["plan", str(seven_b), "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "math/midtrain",
        "trainable",
        "GPU-hours",
        "activations",
        "fits",
        "network/step",
        "a better tools expert",
        "Assumed: H100",
    ):
        assert words in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["plan", str(seven_b), "layout.tensor=1", "layout.expert=1", "--memory=24"]) == 3
    shown = capsys.readouterr().out
    assert "too big; fits with tensor 8, expert 1, pipeline 1" in shown
    assert (
        "too big: math/midtrain; fits with 'domains.math.midtrain.layout={processes: 64, "
        "tensor: 8, expert: 1, pipeline: 1}'"
    ) in shown


def test_layouts_are_listed_the_fastest_first(seven_b, capsys):
    assert main(["plan", str(seven_b), "--layouts", "math/midtrain", "--memory", "72"]) == 0
    shown = capsys.readouterr().out
    first, second = (line.split() for line in shown.splitlines()[1:3])
    assert (first[0], second[0]) == ("1", "2") and float(first[-3]) <= float(second[-3])
    assert " * " in shown and "360 GB/s a GPU in a node" in shown
    assert "'domains.math.midtrain.layout={processes: 64," in shown
    for name, message in (("math/sfd", "no such stage"), ("math/branch", "doesn't train")):
        assert main(["plan", str(seven_b), "--layouts", name]) == 1
        assert message in capsys.readouterr().err
    assert main(["plan", str(seven_b), "--layouts", "math/sft", "--memory", "5"]) == 1
    assert "no layout of 64 GPUs fits" in capsys.readouterr().err


def test_a_site_says_what_its_gpus_do(seven_b, tmp_path, capsys):
    site = tmp_path / "site.yaml"
    site.write_text(
        "machine: {gpu: H200, memory: 141, network: 20, measured: [{mfu: 0.5, gpu: H200}]}\n"
        "gpu_nodes: {ranks: 4}\n"
    )
    assert main(["plan", str(seven_b), "--site", str(site)]) == 0
    shown = capsys.readouterr().out
    assert "Assumed: H200, 4 GPUs a node" in shown and "of 141 GiB" in shown
    assert "20 between nodes" in shown
    for machine, message in (
        ("{gpu: TPU}", "machine.gpu TPU: its peak isn't known"),
        ("{measured: [{hidden: 4096}]}", "machine.measured.0.mfu 0.0 is not in (0, 1]"),
        ("{file_system: {node: 0}}", "machine.file_system.node must be more than 0"),
    ):
        site.write_text(f"machine: {machine}\n")
        assert main(["plan", str(seven_b), "--site", str(site)]) == 1
        assert message in capsys.readouterr().err


def test_steps_come_from_the_data_where_it_is_at_hand(seven_b, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    epochs = ["domains.tools.sft.steps=null", "domains.tools.sft.epochs=2"]
    assert main(["plan", str(seven_b), *epochs]) == 0
    assert "expert 1, math" not in capsys.readouterr().out
    (tmp_path / "x.jsonl").write_bytes(bytes(5 * 256 * 4096 * 3))
    recipe = load_recipe(seven_b, epochs)
    plans = plan_stages(recipe, planned_model(recipe, None), Machine())
    assert next(p for p in plans if p.stage.name == "tools/sft").steps == 6


def test_evaluations_are_counted_where_their_items_are_at_hand(seven_b, tmp_path, capsys):
    held_out = f"domains.math.tasks=[{{path: {tmp_path / 'held_out.jsonl'}}}]"
    assert main(["plan", str(seven_b), held_out]) == 0
    shown = capsys.readouterr().out
    assert "evaluations of ? need the items of domains.*.tasks" in shown
    assert "steps of ?" not in shown
    (tmp_path / "held_out.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "?"}], "answer": "!"}\n' * 500
    )
    assert main(["plan", str(seven_b), held_out]) == 0
    shown = capsys.readouterr().out
    assert "?" not in shown
    assert any(
        line.split()[0] == "all" and float(line.split()[-1].replace(",", "")) > 100
        for line in shown.splitlines()
        if line.strip()
    )
    assert (
        main(["plan", str(seven_b), "domains.tools.sft.steps=null", "domains.tools.sft.epochs=2"])
        == 0
    )
    assert (
        "steps of ? need the data, which isn't all here; or give steps or tokens in place of "
        "epochs: domains.tools.sft\n"
    ) in capsys.readouterr().out


def test_a_part_of_a_source_counts_for_a_part(seven_b, tmp_path):
    (tmp_path / "x.jsonl").write_text(("x" * 5 * 4096 + "\n") * 3 * 256)
    epochs = ["domains.tools.sft.steps=null", "domains.tools.sft.epochs=2"]

    def steps(*overrides: str) -> int:
        recipe = load_recipe(seven_b, [*epochs, *overrides])
        plans = plan_stages(recipe, planned_model(recipe, None), Machine())
        return next(p for p in plans if p.stage.name == "tools/sft").steps

    assert steps() == 7
    assert steps("domains.tools.sft.data.0.count=256") == 3
    assert steps(f"domains.tools.sft.data.0.path={tmp_path}/*.jsonl") == 7


@pytest.mark.slow
def test_a_third_domain_needs_no_layout_for_the_router(seven_b, capsys):
    """Three experts on a layout that shares two ranks' experts: each rank holds all of them."""
    recipe = load_recipe(
        seven_b,
        [
            "route.training.layout=null",
            "domains={math: {sft: {steps: 1, global_batch_size: 64, dtype: bfloat16, "
            "data: [{path: x.jsonl}]}}, code: {sft: {steps: 1, global_batch_size: 64, "
            "dtype: bfloat16, data: [{path: x.jsonl}]}}}",
            "domains.tools=null",
        ],
    )
    plans = {p.stage.name: p for p in plan_stages(recipe, planned_model(recipe, None), Machine())}
    assert plans["routed"].stage.layout == Layout(64, tensor=2)
    assert plans["math/sft"].stage.layout == Layout(64, tensor=2, expert=2)
    given = "route.training.layout={processes: 60, tensor: 2, expert: 3}"
    assert main(["plan", str(seven_b), given]) == 1
    assert (
        "routed: layout.expert 3 doesn't divide the model's 4 experts; a stage's own layout, "
        "such as route.training.layout"
    ) in capsys.readouterr().err


def test_rows_longer_than_the_model_knows_are_reported(seven_b, capsys):
    assert (
        main(
            [
                "plan",
                str(seven_b),
                "domains.math.midtrain.sequence_length=8192",
                "domains.math.midtrain.recompute=full",
            ]
        )
        == 0
    )
    warnings = [line for line in capsys.readouterr().out.splitlines() if "positions" in line]
    assert len(warnings) == 1 and warnings[0].startswith(
        "math/midtrain: rows of 8192 tokens are longer than the 4096 positions"
    )


def test_answers_that_the_positions_cut_short_are_reported(seven_b, capsys):
    rlvr = "domains.math.rlvr={data: [{path: x.jsonl, verifier: math}], steps: 3, dtype: bfloat16}"
    command = [
        "plan",
        str(seven_b),
        rlvr,
        "domains.math.rlvr.layout={processes: 32, tensor: 2, expert: 2}",
    ]
    assert main(command) in (0, 3)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "positions" in line]
    assert warning.startswith("math/rlvr: answers end at the model's 4096 positions")
    assert main([*command, "domains.math.rlvr.response_length=2048"]) in (0, 3)
    assert "positions" not in capsys.readouterr().out


def test_steps_given_in_tokens_need_no_data(seven_b):
    tokens = ["domains.tools.sft.steps=null", "domains.tools.sft.tokens=50B"]
    recipe = load_recipe(seven_b, tokens)
    plans = plan_stages(recipe, planned_model(recipe, None), Machine())
    # As the stage itself reckons: 50e9 / (256 x 4096), rounded up.
    assert next(p for p in plans if p.stage.name == "tools/sft").steps == 47684


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["anchor=my-model"], "OWNER/NAME of the hub; or give --model with one of olmo2-1b, "),
        (["--model", "olmo9"], "olmo9: unknown"),
        (["--gpu", "TPU"], "its peak isn't known"),
        (["--mfu", "0"], "is not in (0, 1]"),
        (["layout.tensor=3", "layout.processes=96"], "such as route.training.layout"),
    ],
)
def test_what_can_not_be_planned_is_reported(arguments, message, seven_b, capsys):
    assert main(["plan", str(seven_b), *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_the_toy_has_a_plan(capsys):
    assert main(["plan", str(ROOT / "examples" / "toy.yaml")]) == 0
    assert "722.82 k" in capsys.readouterr().out


def test_a_rule_reads_what_is_shared_several_times():
    """TIES four times of each of five models, the last one to tell distances; the mean once."""

    def merged(*overrides):
        recipe = load_recipe(ROOT / "examples" / "toy.yaml", overrides)
        plans = plan_stages(recipe, planned_model(recipe, None), Machine())
        return next(p for p in plans if p.stage.name == "merged")

    mean, ties = merged(), merged("merge.shared=ties")
    one = mean.model.without_experts()
    ffns = 3 * one.num_layers * one.hidden_size * one.ffn_hidden_size
    shared = sum(rank_parameters(one, Layout()).values()) - ffns
    more = (ties.seconds - mean.seconds) * Machine().checkpoint_rate
    assert more == pytest.approx(3 * 5 * shared * 4)
    assert ties.memory == mean.memory
