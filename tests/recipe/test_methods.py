"""Each method's graph, and what it refuses."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from megatron_bar.launch.check import check_recipe, check_works, stage_models
from megatron_bar.launch.work import work_of
from megatron_bar.methods import METHODS, check_method, stage_graph
from megatron_bar.methods.load import load_recipe, load_recipes
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.schema import Domain
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import require
from megatron_bar.stages.context import identity

EXAMPLES = Path(__file__).parents[2] / "examples"
TOY = EXAMPLES / "toy.yaml"
# What every domain of the toy trains is left to the method; it ends with SFT.
OPEN = [
    *(f"domains.{name}.sft.trainable=[]" for name in ("math", "code", "tool_use", "safety")),
    *(f"domains.{name}.rlvr=null" for name in ("math", "code")),
]
STARTS = ["base", "anchor", "pretrained"]


def graph(*overrides):
    recipe = load_recipe(TOY, [*OPEN, *overrides])
    assert check_recipe(recipe, todo=()) == []
    return {stage.name: stage for stage in stage_graph(recipe)}


def own(stages):
    """Names of the stages that make the model."""
    return [
        name
        for name, stage in stages.items()
        if stage.KIND not in ("pretrain", "import", "evaluate", "export", "report")
    ]


DENSE = ["math/midtrain", "math/sft", "code/midtrain", "code/sft", "tool_use/sft", "safety/sft"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, expected, final",
    [
        (
            ["method=flexolmo"],
            [
                "math/branch",
                "math/midtrain",
                "math/sft",
                "code/branch",
                "code/midtrain",
                "code/sft",
                "tool_use/branch",
                "tool_use/sft",
                "safety/branch",
                "safety/sft",
                "merged",
                "routed",
            ],
            "routed",
        ),
        (["method=btx"], [*DENSE, "merged", "routed"], "routed"),
        (["method=dense_merge"], [*DENSE, "merged"], "merged"),
        (
            ["method=dense_merge", "domains.math.midtrain=null", "domains.code.midtrain=null"],
            ["math/sft", "code/sft", "tool_use/sft", "safety/sft", "merged"],
            "merged",
        ),
        (["method=continued"], ["all/sft"], "all/sft"),
        (
            ["method=continued", "order=sequence"],
            ["math/sft", "code/sft", "tool_use/sft", "safety/sft"],
            "safety/sft",
        ),
        (["method=retrain"], ["all/sft"], "all/sft"),
        (["method=retrain_midtrain"], ["all/midtrain", "all/sft"], "all/sft"),
    ],
)
def test_graphs(overrides, expected, final):
    stages = graph(*overrides)
    assert list(stages)[:3] == STARTS and own(stages) == expected
    assert stages["hf"].inputs == {"checkpoint": final}
    last = [stage for stage in stages.values() if stage.KIND == "evaluate"][-1]
    assert last.inputs == {"checkpoint": final}
    for name in ("evaluate/anchor", last.name):
        assert set(stages[name].tasks) == {"math", "code", "tool_use", "safety", "general"}
    done = set()
    for stage in stages.values():
        assert set(stage.inputs.values()) <= done
        done.add(stage.name)


@pytest.mark.slow
def test_dense_methods_train_everything_from_the_right_start():
    for method, start in (("continued", "anchor"), ("retrain", "pretrained")):
        stage = graph(f"method={method}")["all/sft"]
        assert stage.inputs == {"start": start}
        assert stage.training.trainable == ["*"]
    for method in ("btx", "dense_merge"):
        stages = graph(f"method={method}")
        assert {
            stages[f"{d}/{k}"].inputs["start"]
            for d, k in (
                ("math", "midtrain"),
                ("code", "midtrain"),
                ("tool_use", "sft"),
                ("safety", "sft"),
            )
        } == {"anchor"}
        assert all(stages[name].training.trainable == ["*"] for name in DENSE)
    sequence = graph("method=continued", "order=sequence")
    assert sequence["tool_use/sft"].inputs == {"start": "code/sft"}


def test_flexolmo_opens_nothing_shared():
    stages = graph("method=flexolmo")
    assert all(
        stage.training.trainable == ["expert.1", "router.1"]
        for stage in stages.values()
        if stage.KIND in ("midtrain", "sft")
    )
    opened = graph()["tool_use/sft"].training.trainable
    assert {"embeddings", "head", "final_norm"} < set(opened)


@pytest.mark.slow
def test_one_stage_reads_what_the_domains_own_would():
    stages = graph("method=retrain_midtrain")
    midtrain, sft = stages["all/midtrain"], stages["all/sft"]
    assert list(midtrain.parts) == ["math", "code"]
    assert {name: part.steps for name, part in sft.parts.items()} == {
        "math": 400,
        "code": 220,
        "tool_use": 300,
        "safety": 160,
    }
    training = sft.training
    assert (training.epochs, training.steps, training.data) == (1.0, None, [])
    assert (training.lr, training.global_batch_size) == (4e-3, 4)
    longer = graph("method=retrain_midtrain", "domains.math.sft.steps=401")
    assert identity(longer["all/sft"]) != identity(sft)
    assert identity(longer["all/midtrain"]) == identity(midtrain)


def test_rlvr_of_all_domains():
    recipe = load_recipe(
        TOY,
        [
            *OPEN,
            "method=retrain",
            'domains.math.rlvr={"data":[{"toy":"math"}],"steps":3}',
            'domains.code.rlvr={"data":[{"toy":"code"}],"steps":2}',
        ],
    )
    stage = next(stage for stage in stage_graph(recipe) if stage.name == "all/rlvr")
    training = stage.training
    assert [source.toy for source in training.data] == ["math", "code"]
    assert training.steps == 5 and training.trainable == ["*"]
    assert stage.inputs == {"start": "all/sft"}


@pytest.mark.slow
def test_the_models_of_stages():
    def experts(method):
        recipe = load_recipe(TOY, [*OPEN, f"method={method}"])
        return {
            name: model.num_experts for name, model in stage_models(recipe, PRESETS["toy"]).items()
        }

    assert experts("bar")["math/sft"] == 2 and experts("bar")["routed"] == 5
    assert experts("btx")["math/sft"] is None and experts("btx")["routed"] == 5
    assert experts("dense_merge")["merged"] is None
    assert experts("retrain")["hf"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, message",
    {
        "method=bat": "no method 'bat'; there are bar, flexolmo, btx",
        "method=flexolmo domains.math.sft.trainable=[expert.1,head]": (
            "domains.math.sft.trainable has 'head', and method flexolmo keeps all"
        ),
        "method=btx merge.shared=law": (
            "merge.shared 'law' is none of published, branches, anchor, m"
        ),
        "method=btx route.fraction=0": "not in",
        "method=dense_merge merge.shared=math": "dense_merge averages all weights",
        "method=dense_merge merge.shared=fisher": (
            "dense_merge averages all weights; give one of publ"
        ),
        "merge.shared=slerp": "merge.shared slerp takes two domains, and there are 4",
        "merge.density=0.5": "merge.density is for ties, dare_linear, dare_ties, and merge",
        "merge.shared=fisher": (
            "set domains.math.sft.second_moments=true, and train that stage anew"
        ),
        "merge.shared=ties merge.density=0": "merge.density 0.0 is not a share above 0, up to 1",
        "method=retrain merge.scale=2": (
            "merge is for methods that merge, and retrain trains one model"
        ),
        "method=continued merge.shared=branches": "continued trains one model; leave it out",
        "method=continued order=random": "order 'random' is not mixed or sequence",
        "method=retrain order=sequence": "is for method continued, and the method is retrain",
        "method=retrain domains.math.sft.lr=1": r"sft.lr is 1.0 for math and 0.004 for code",
        "method=retrain_midtrain domains.math.midtrain=null domains.code.midtrain=null": (
            "nothing to train: no domain has midtrain"
        ),
        "method=retrain pretrain=null anchor=some/folder": "starts from the pretrained model; give",
    }.items(),
)
def test_what_does_not_go_together_gets_one_line(overrides, message):
    with pytest.raises(BarError, match=message) as raised:
        load_recipe(TOY, [*OPEN, *overrides.split()])
    assert "\n" not in str(raised.value)


def test_a_dense_method_has_no_experts_to_name():
    with pytest.raises(BarError, match=r"math/sft: trainable: 'expert.1' matches no parameter"):
        require(check_recipe(load_recipe(TOY, ["method=btx"])))


@pytest.mark.slow
def test_dense_methods_do_not_look_at_route():
    load_recipe(TOY, [*OPEN, "method=retrain", "route.fraction=2", "route.experts_per_token=9"])
    with pytest.raises(BarError, match=r"route.fraction 2.0 is not in"):
        load_recipe(TOY, ["route.fraction=2"])
    with pytest.raises(BarError, match=r"route.experts_per_token 9 is not from 1 to 5"):
        load_recipe(TOY, ["route.experts_per_token=9"])


def test_a_branch_trained_before_takes_the_place_of_a_domains_stages():
    recipe = load_recipe(TOY)
    adopted = Domain(checkpoint="ckpt/math", routing=recipe.domains["math"].sft.data)
    recipe = dataclasses.replace(recipe, domains=recipe.domains | {"math": adopted})
    for method in ("bar", "flexolmo"):
        recipe = dataclasses.replace(recipe, method=method)
        stages = {s.name: s for s in stage_graph(recipe) if s.domain == "math"}
        assert {name: s.KIND for name, s in stages.items()} == {"math/branch": "adopt"}
        merged = next(s for s in stage_graph(recipe) if s.name == "merged")
        assert merged.inputs["math"] == "math/branch"
    with pytest.raises(BarError, match="checkpoint is a branch with an anchor, and method btx"):
        check_method(dataclasses.replace(recipe, method="btx"))


def test_the_routed_model_without_experts():
    stages = stage_graph(load_recipe(TOY, ["evaluate.opt_out=[math,anchor]"]))
    plain = {s.name: identity(s) for s in stage_graph(load_recipe(TOY))}
    new = {s.name: s for s in stages if plain.get(s.name) != identity(s)}
    assert set(new) == {"evaluate/without-math", "evaluate/without-anchor", "report"}
    assert new["evaluate/without-math"].inputs == {"checkpoint": "routed"}
    assert new["evaluate/without-math"].asking.opt_out == ["math"]
    with pytest.raises(BarError, match="opt_out is for methods that route, and the method is retr"):
        load_recipe(TOY, [*OPEN, "method=retrain", "evaluate.opt_out=[math]"])


def test_a_domains_model_after_each_of_its_stages():
    plain = {s.name: identity(s) for s in stage_graph(load_recipe(TOY))}
    stages = stage_graph(load_recipe(TOY, ["evaluate.each_stage=true"]))
    new = {s.name: s for s in stages if plain.get(s.name) != identity(s)}
    assert set(new) == {
        "evaluate/math.midtrain",
        "evaluate/math.sft",
        "evaluate/code.midtrain",
        "evaluate/code.sft",
        "report",
    }
    assert new["evaluate/math.sft"].inputs == {"checkpoint": "math/sft"}
    assert set(new["evaluate/math.sft"].tasks) == {"math", "general"}
    together = stage_graph(
        load_recipe(TOY, [*OPEN, "method=retrain_midtrain", "evaluate.each_stage=true"])
    )
    after = [s for s in together if s.name.startswith("evaluate/all.")]
    assert [s.inputs["checkpoint"] for s in after] == ["all/midtrain"]
    assert set(after[0].tasks) == {"math", "code", "tool_use", "safety", "general"}


@pytest.mark.slow
def test_the_comparison_has_every_method_and_shares_what_it_can():
    recipes = load_recipes(EXAMPLES / "toy-compare.yaml", ["runs=elsewhere"])
    assert {recipe.method for recipe in recipes} == set(METHODS)
    by_name = {
        recipe.name: {s.name: identity(s) for s in stage_graph(recipe)} for recipe in recipes
    }
    check_works([work_of(recipe) for recipe in recipes], installed=False)
    compared = Path("elsewhere/toy-compare").absolute()
    assert recipes[2].reuse == [str(compared / "bar"), str(compared / "flexolmo")]
    flexolmo, bar = by_name["toy-compare/flexolmo"], by_name["toy-compare/bar"]
    toy = load_recipe(TOY, ["domains.math.rlvr=null", "domains.code.rlvr=null"])
    toy = {s.name: identity(s) for s in stage_graph(toy)}
    assert {name for name in flexolmo if flexolmo[name] != toy[name]} == {"hf"}  # the model card
    assert {name for name in bar if bar[name] != toy[name]} == {"tool_use/sft"}
    btx, merge = by_name["toy-compare/btx"], by_name["toy-compare/dense_merge"]
    assert all(btx[name] == merge[name] for name in [*STARTS, *DENSE])
    ablations = load_recipes(EXAMPLES / "toy-ablations.yaml")
    assert {s.name: identity(s) for s in stage_graph(ablations[0])} == toy


def test_the_frozen_twin_takes_over_all_but_what_rlvr_changes():
    open_, frozen = (
        load_recipe(EXAMPLES / f"{name}.yaml", ["runs=elsewhere"])
        for name in ("toy-rl", "toy-rl-frozen")
    )
    assert frozen.reuse == [str(Path("elsewhere", open_.name).absolute())]
    before = {s.name: identity(s) for s in stage_graph(open_)}
    changed = [s for s in stage_graph(frozen) if before[s.name] != identity(s)]
    assert [stage.name for stage in changed] == ["code/rlvr"]
    assert changed[0].training.trainable == ["expert.1", "router.1"]


@pytest.mark.slow
def test_systems_and_what_a_recipe_extends(tmp_path):
    shorter = {"seed": 5, "domains": {"math": {"sft": {"steps": 7}}}}
    (tmp_path / "both.yaml").write_text(
        yaml.safe_dump(
            {
                "extends": str(TOY),
                "name": "both",
                "seed": 4,
                "systems": {"plain": None, "short": shorter},
            }
        )
    )
    plain, short = load_recipes(tmp_path / "both.yaml", ["domains.code.sft.steps=8"])
    assert (plain.name, plain.seed, short.name, short.seed) == ("both/plain", 4, "both/short", 5)
    assert [r.domains["math"].sft.steps for r in (plain, short)] == [400, 7]
    assert [r.domains["code"].sft.steps for r in (plain, short)] == [8, 8]
    assert short.systems == {} and short.extends is None
    with pytest.raises(BarError, match="has 2 systems, which only megatron-bar run takes"):
        load_recipe(tmp_path / "both.yaml")
    with pytest.raises(BarError, match=r"both.yaml, system short: .*sft: give one of"):
        load_recipes(tmp_path / "both.yaml", ["systems.short.domains.math.sft.epochs=1"])
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(BarError, match="which extends it"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: none.yaml")
    with pytest.raises(BarError, match=r"none.yaml doesn't exist"):
        load_recipe(tmp_path / "c.yaml")


@pytest.mark.slow
def test_what_a_system_extends_takes_the_place_of_what_its_recipe_does(tmp_path):
    def write(name, keys):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(keys))

    write(
        "own/fast.yaml",
        {
            "extends": str(TOY),
            "name": "fast",
            "seed": 1,
            "order": "sequence",
            "method": "continued",
            "route": {"fraction": 0.3},
        },
    )
    write(
        "all.yaml",
        {
            "extends": "slow.yaml",
            "name": "all",
            "seed": 2,
            "systems": {
                "fast": {
                    "extends": "own/fast.yaml",
                    "domains": {"math": {"sft": {"data": {0: {"count": 5}}}}},
                },
                "slow": None,
            },
        },
    )
    write("slow.yaml", {"extends": str(TOY), "route": {"fraction": 0.4, "experts_per_token": 2}})
    write(
        "more.yaml",
        {
            "extends": "all.yaml",
            "chat_template": "olmo",
            "systems": {"fast": {"layout": {"processes": 2}}},
        },
    )
    for path in ("all.yaml", "more.yaml"):
        fast, slow = load_recipes(tmp_path / path, ["evaluate.max_new_tokens=9"])
        assert (fast.name, fast.seed, fast.method, fast.order) == (
            "all/fast",
            2,
            "continued",
            "sequence",
        )
        assert (fast.route.fraction, fast.route.experts_per_token) == (0.3, None)
        assert [source.count for source in fast.domains["math"].sft.data] == [5, 1500]
        assert fast.layout.processes == (2 if "more" in path else 1)
        assert (slow.method, slow.route.fraction, slow.route.experts_per_token) == ("bar", 0.4, 2)
        assert {r.evaluate.max_new_tokens for r in (fast, slow)} == {9}
        assert {r.chat_template for r in (fast, slow)} == {"olmo" if "more" in path else None}
    (other, _) = load_recipes(tmp_path / "all.yaml", [f"systems.fast.extends={TOY}"])
    assert (other.name, other.seed, other.route.fraction) == ("all/fast", 2, 0.25)
    write("all.yaml", {"name": "all", "systems": {"fast": {"extends": "none.yaml"}}})
    with pytest.raises(BarError, match=r"none.yaml doesn't exist"):
        load_recipes(tmp_path / "all.yaml")


@pytest.mark.parametrize(
    "systems, message",
    [
        ({"btx": 3}, "systems.btx is '3' and should be keys"),
        ({"a/b": None}, "a system can't be called 'a/b'"),
        ({"btx": {"methd": "btx"}}, "systems.btx.methd: there is no such key; did you mean method"),
        ({"btx": {"method": "bts"}}, "system btx: there is no method 'bts'"),
    ],
)
def test_systems_that_make_no_sense_get_one_line(systems, message, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"extends": str(TOY), "systems": systems}))
    with pytest.raises(BarError, match=message) as raised:
        load_recipes(tmp_path / "r.yaml")
    assert "\n" not in str(raised.value)
