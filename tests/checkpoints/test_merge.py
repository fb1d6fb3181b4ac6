"""Merge: plain torch says what each mode gives, transformers reads it."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from tests.models_hf import imported, random_dense, random_experts, random_olmo3

LAYERS, PARTS = 4, ("gate_proj", "up_proj", "down_proj")


def tensors(checkpoint, tmp_path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds, under transformers' names."""
    export_hf(checkpoint, tmp_path / "as-hf", overwrite=True)
    return load_file(tmp_path / "as-hf" / "model.safetensors")


def is_shared(name: str) -> bool:
    return ".mlp." not in name


def experts_of(found: dict[str, torch.Tensor], expert: int) -> list[torch.Tensor]:
    return [
        found[f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"]
        for layer in range(LAYERS)
        for part in PARTS
    ]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def trained(source, folder, name, seed, anchor_moves=False, dtype=torch.float32):
    """A branch after some training: all but the anchor and its router row have moved."""
    branch(source, folder / f"{name}-start", expert_name=name)
    export_hf(folder / f"{name}-start", folder / f"{name}-hf", dtype=dtype)
    path = folder / f"{name}-hf" / "model.safetensors"
    found = load_file(path)
    generator = torch.Generator().manual_seed(seed)
    model = random_experts(2).to(dtype)
    for key, tensor in found.items():
        noise = 0.1 * torch.randn(tensor.shape, generator=generator)
        if "experts.0." in key and not anchor_moves:
            noise.zero_()
        if "mlp.gate." in key:
            noise[0] = 0
        found[key] = tensor + noise.to(dtype)
    model.load_state_dict(found)
    model.save_pretrained(folder / f"{name}-moved")
    import_hf(folder / f"{name}-moved", folder / name)
    config = ModelConfig.load(folder / f"{name}-start")
    config.save(folder / name)  # the expert's name, which a Hugging Face folder doesn't keep
    return folder / name


@pytest.fixture(scope="module")
def branches(anchor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    return [
        trained(anchor, folder, name, seed) for seed, name in enumerate(("math", "code", "law"))
    ]


@pytest.fixture(scope="module")
def merged(anchor, branches, tmp_path_factory):
    """math and code, as published."""
    target = tmp_path_factory.mktemp("merged") / "checkpoint"
    merge(branches[:2], target, anchor)
    return target


def close_to_mean(found, models, weights=None):
    """Shared tensors are the fp32 mean that plain torch computes, to the last bit or two."""
    weights = torch.tensor(weights or [1.0] * len(models))
    for name in filter(is_shared, found):
        stacked = torch.stack([model[name].float() for model in models])
        mean = (stacked * weights.view(-1, *[1] * (stacked.dim() - 1))).sum(0) / weights.sum()
        torch.testing.assert_close(found[name], mean.to(found[name].dtype), rtol=1e-6, atol=1e-7)


def test_published_mean_and_stacked_experts(anchor, branches, tmp_path):
    done = merge(branches[:2], tmp_path / "merged", anchor)
    assert done.model.num_experts == done.model.experts_per_token == 3
    assert done.model.all_expert_names == ("anchor", "math", "code")
    assert done.model.merged_from == ("anchor", "math", "code")
    found = tensors(tmp_path / "merged", tmp_path)
    math_, code = (tensors(b, tmp_path) for b in branches[:2])
    close_to_mean(found, [math_, code, random_dense(0).state_dict()])
    for expert, (source, index) in enumerate([(math_, 0), (math_, 1), (code, 1)]):
        assert equal(experts_of(found, expert), experts_of(source, index))
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.mlp.gate.weight"
        rows = [math_[name][0], math_[name][1], code[name][1]]
        assert torch.equal(found[name], torch.stack(rows))


def test_mean_over_branches_alone(anchor, branches, tmp_path):
    done = merge(branches[:2], tmp_path / "merged", anchor, average="branches")
    close_to_mean(
        tensors(tmp_path / "merged", tmp_path), [tensors(b, tmp_path) for b in branches[:2]]
    )
    assert done.model.merged_from == ("math", "code")
    merge(branches[:2], tmp_path / "without", average="branches")
    assert tensors(tmp_path / "without", tmp_path).keys()


def test_weights_by_group(anchor, branches, tmp_path):
    done = merge(
        branches[:2],
        tmp_path / "merged",
        anchor,
        weights=["*=math:1,code:1,anchor:2", "embeddings=math:3,code:1", "head=anchor:1"],
    )
    assert done.model.merged_from == ()
    found = tensors(tmp_path / "merged", tmp_path)
    models = [*(tensors(b, tmp_path) for b in branches[:2]), random_dense(0).state_dict()]
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    rest = {n: t for n, t in found.items() if n not in (embeddings, head)}
    close_to_mean(rest, models, [1.0, 1.0, 2.0])
    close_to_mean({embeddings: found[embeddings]}, models, [3.0, 1.0, 0.0])
    assert torch.equal(found[head], models[2][head])


def test_bf16_is_averaged_in_fp32(anchor, tmp_path):
    moved = [
        trained(anchor, tmp_path, name, seed, dtype=torch.bfloat16)
        for seed, name in enumerate(("a", "b", "c"))
    ]
    merge(moved, tmp_path / "merged", average="branches")
    found = tensors(tmp_path / "merged", tmp_path)
    models = [tensors(b, tmp_path) for b in moved]
    for name in filter(is_shared, found):
        assert found[name].dtype is torch.bfloat16
        mean = torch.stack([model[name].float() for model in models]).mean(0)
        assert torch.equal(found[name], mean.bfloat16()), name


def test_copies_keep_every_shared_bit(anchor, tmp_path):
    for name in "abcd":
        branch(anchor, tmp_path / name, expert_name=name)
    done = merge([tmp_path / name for name in "abcd"], tmp_path / "merged", anchor)
    found, base = tensors(tmp_path / "merged", tmp_path), random_dense(0).state_dict()
    assert all(torch.equal(found[n], base[n]) for n in base if is_shared(n))
    assert all(d.largest == d.max_absolute == 0 for d in done.by_group)


def test_deviations_are_what_torch_says(anchor, branches, tmp_path):
    done = merge(branches[:2], tmp_path / "merged", anchor)
    models = [*(tensors(b, tmp_path) for b in branches[:2]), random_dense(0).state_dict()]
    groups = {d.group: d for d in done.by_group}
    assert set(groups) == {
        "embeddings",
        "attention",
        "block_norms",
        "final_norm",
        "head",
        "router.0",
    }
    names = [n for n in models[0] if ".self_attn." in n]
    means = {n: torch.stack([m[n] for m in models]).mean(0) for n in names}
    norm = math.sqrt(sum(t.square().sum().item() for t in means.values()))
    relative = [
        math.sqrt(sum((m[n] - means[n]).square().sum().item() for n in names)) / norm
        for m in models
    ]
    distances = torch.cat([(m[n] - means[n]).abs().flatten() for m in models for n in names])
    found = groups["attention"]
    assert found.largest == pytest.approx(max(relative), rel=1e-4)
    assert found.mean == pytest.approx(sum(relative) / 3, rel=1e-4)
    assert found.max_absolute == pytest.approx(distances.max().item(), rel=1e-4)
    assert found.mean_absolute == pytest.approx(distances.mean().item(), rel=1e-4)
    assert groups["router.0"].max_absolute == 0
    assert len(done.by_tensor) == 3 + LAYERS * 7


def test_trained_anchors_are_refused_or_averaged(anchor, tmp_path):
    moved = [
        trained(anchor, tmp_path, name, seed, anchor_moves=True)
        for seed, name in enumerate(("a", "b"))
    ]
    with pytest.raises(BarError, match="different anchors"):
        merge(moved, tmp_path / "merged", average="branches")
    with pytest.raises(BarError, match="different anchors"):
        merge(moved[:1], tmp_path / "merged", anchor)
    assert not (tmp_path / "merged").exists()
    merge(moved, tmp_path / "merged", anchor, anchor_ffn="average")
    found = experts_of(tensors(tmp_path / "merged", tmp_path), 0)
    dense = random_dense(0).state_dict()
    models = [
        *(experts_of(tensors(b, tmp_path), 0) for b in moved),
        [dense[f"model.layers.{i}.mlp.{p}.weight"] for i in range(LAYERS) for p in PARTS],
    ]
    for tensor, *parts in zip(found, *models):
        torch.testing.assert_close(tensor, torch.stack(parts).mean(0), rtol=1e-6, atol=1e-7)


def test_anchors_without_manifests_are_compared_by_their_bytes(anchor, branches, tmp_path):
    copies = [shutil.copytree(b, tmp_path / b.name) for b in branches[:2]]
    for copy in copies:
        (copy / "manifest.json").unlink()
    merge(copies, tmp_path / "merged", anchor)
    random_dense(7).save_pretrained(tmp_path / "other-hf")
    import_hf(tmp_path / "other-hf", tmp_path / "other")
    with pytest.raises(BarError, match="different anchors"):
        merge(copies, tmp_path / "wrong", tmp_path / "other")


def test_anchor_rows_that_moved_are_averaged(anchor, tmp_path):
    branch(anchor, tmp_path / "a", seed=1, expert_name="a")
    branch(anchor, tmp_path / "b", seed=2, expert_name="b")
    done = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged", anchor)
    name = "model.layers.2.mlp.gate.weight"
    a, b = (tensors(tmp_path / n, tmp_path)[name] for n in "ab")
    rows = tensors(tmp_path / "merged", tmp_path)[name]
    torch.testing.assert_close(rows[0], (a[0] + b[0]) / 2)
    assert torch.equal(rows[1], a[1]) and torch.equal(rows[2], b[1])
    assert {d.group: d.largest for d in done.by_group}["router.0"] > 0.1


def test_adding_to_a_merged_model_is_merging_all(anchor, branches, merged, tmp_path):
    done = merge([merged, branches[2]], tmp_path / "added")
    merge(branches, tmp_path / "at-once", anchor)
    assert done.model == ModelConfig.load(tmp_path / "at-once")
    added, at_once = (tensors(tmp_path / n, tmp_path) for n in ("added", "at-once"))
    for name, tensor in at_once.items():
        if is_shared(name):
            torch.testing.assert_close(added[name], tensor, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(added[name], tensor), name


def test_experts_are_selected_ordered_and_dropped(merged, tmp_path):
    done = merge([merged], tmp_path / "out", experts=["anchor", "code"])
    assert done.model.all_expert_names == ("anchor", "code") and done.by_group == []
    assert done.model.experts_per_token == 2
    before, after = tensors(merged, tmp_path), tensors(tmp_path / "out", tmp_path)
    assert equal(experts_of(after, 1), experts_of(before, 2))
    gate = "model.layers.1.mlp.gate.weight"
    assert torch.equal(after[gate], before[gate][[0, 2]])
    assert all(torch.equal(after[n], before[n]) for n in filter(is_shared, before))
    merge([merged], tmp_path / "swapped", experts=["anchor", "code", "math"])
    swapped = tensors(tmp_path / "swapped", tmp_path)
    assert equal(experts_of(swapped, 1), experts_of(before, 2))
    assert torch.equal(swapped[gate], before[gate][[0, 2, 1]])


def test_a_new_expert_takes_the_place_of_its_namesake(anchor, branches, merged, tmp_path):
    newer = trained(anchor, tmp_path, "math", seed=11)
    done = merge([merged, newer], tmp_path / "out")
    assert done.model.all_expert_names == ("anchor", "math", "code")
    found = tensors(tmp_path / "out", tmp_path)
    assert equal(experts_of(found, 1), experts_of(tensors(newer, tmp_path), 1))
    assert equal(experts_of(found, 2), experts_of(tensors(merged, tmp_path), 2))
    close_to_mean(found, [tensors(merged, tmp_path), tensors(newer, tmp_path)], [3.0, 1.0])


def test_a_merge_of_unknown_weights_wants_to_be_named(anchor, branches, tmp_path):
    merge(branches[:2], tmp_path / "weighted", anchor, weights=["*=math:3,code:1"])
    with pytest.raises(BarError, match="doesn't say how many models"):
        merge([tmp_path / "weighted", branches[2]], tmp_path / "out")
    merge([tmp_path / "weighted", branches[2]], tmp_path / "out", weights=["*=merged:4,law:1"])
    close_to_mean(
        tensors(tmp_path / "out", tmp_path),
        [tensors(tmp_path / "weighted", tmp_path), tensors(branches[2], tmp_path)],
        [4.0, 1.0],
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(weights=["heads=math:1"]), "is one of embeddings, attention"),
        (dict(weights=["head=maths:1"]), "there is no 'maths'; there are math, code, anchor"),
        (dict(weights=["head=math"]), "'math' is not NAME:WEIGHT"),
        (dict(weights=["head=math:-1"]), "isn't negative"),
        (dict(weights=["head=math:0"]), "some weight must be above 0"),
        (dict(experts=["math", "code"]), "name anchor first"),
        (dict(experts=["anchor", "lore"]), "no expert 'lore'; there are anchor, math, code"),
        (dict(average="median"), "neither published nor branches"),
        (dict(anchor_ffn="first"), "neither same nor average"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message, anchor, branches, tmp_path):
    with pytest.raises(BarError, match=message):
        merge(branches[:2], tmp_path / "out", anchor, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_wrong_models_are_refused(anchor, branches, merged, tmp_path):
    again = shutil.copytree(merged, tmp_path / "again")
    linked = tmp_path / "linked"
    linked.symlink_to(branches[0])
    for models, dense, message in [
        ([anchor], None, "a dense model, not a branch"),
        (branches, branches[0], "the anchor is a dense model"),
        (branches, None, "give --anchor CKPT, or --average branches"),
        ([merged, branches[2]], anchor, "leave out --anchor"),
        ([merged, again], None, "both merged models"),
        ([branches[0], branches[0].parent / "." / branches[0].name], anchor, "is given twice"),
        ([branches[0], linked], anchor, "linked is given twice, and a model counts once"),
        ([], anchor, "at least one branch"),
    ]:
        with pytest.raises(BarError, match=message):
            merge(models, tmp_path / "out", dense)
    random_dense(hidden_size=96).save_pretrained(tmp_path / "wide-hf")
    import_hf(tmp_path / "wide-hf", tmp_path / "wide")
    with pytest.raises(BarError, match=r"wide and .* different shape: hidden_size is 96 and 48$"):
        merge(branches, tmp_path / "out", tmp_path / "wide")
    assert not (tmp_path / "out").exists()


def _stored(folder, usual, others=(), other=None):
    """A branch of an anchor in type `usual`; tensors with a word of `others` in type `other`."""
    model = random_dense(seed=7)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(other if any(word in name for word in others) else usual)
    branch(imported(model, folder), folder / "branch")
    return folder / "branch"


def test_unlike_types_that_no_export_can_cast_are_made_anew_as_the_refusal_says(tmp_path):
    """OLMo-3 with experts has no class in transformers."""
    imported(random_olmo3().to(torch.float32), tmp_path)
    import_hf(tmp_path / "hf", tmp_path / "narrow", torch.bfloat16)
    wide, narrow = tmp_path / "wide-branch", tmp_path / "narrow-branch"
    branch(tmp_path / "checkpoint", wide)
    branch(tmp_path / "narrow", narrow)
    with pytest.raises(
        BarError,
        match=(
            rf"so make {wide} anew from an anchor in bfloat16, which megatron-bar import HF_DIR "
            r"CKPT --dtype bfloat16 makes; there is no Hugging Face class"
        ),
    ):
        merge([wide, narrow], tmp_path / "merged", average="branches")
    branch(tmp_path / "narrow", wide, overwrite=True)
    merge([wide, narrow], tmp_path / "merged", average="branches")


@pytest.mark.parametrize(
    "first, second, cast, dtype",
    [
        (("bfloat16",), ("bfloat16", ["norm"], "float32"), ["second"], "bfloat16"),
        (("bfloat16", ["norm"], "float32"), ("bfloat16",), ["first"], "bfloat16"),
        (("float32",), ("bfloat16",), ["first"], "bfloat16"),
        (("float32",), ("bfloat16", ["norm"], "float32"), ["first", "second"], "bfloat16"),
        (("float32", ["embed"], "bfloat16"), ("float32",), ["first"], "float32"),
    ],
    ids=str,
)
def test_unlike_types_merge_once_what_the_refusal_says_is_cast(
    first, second, cast, dtype, tmp_path
):
    models = {
        name: _stored(
            tmp_path / name,
            getattr(torch, usual),
            *rest[:1],
            *[getattr(torch, other) for other in rest[1:]],
        )
        for name, (usual, *rest) in {"first": first, "second": second}.items()
    }
    with pytest.raises(BarError) as refused:
        merge(list(models.values()), tmp_path / "merged", average="branches")
    named = ", ".join(str(models[name]) for name in cast)
    assert (
        f"so cast {'each of ' if cast[1:] else ''}{named}: megatron-bar export CKPT HF_DIR "
        f"--dtype {dtype}, then import" in str(refused.value)
    )
    for name in cast:
        export_hf(models[name], tmp_path / name / "cast-hf", getattr(torch, dtype))
        models[name] = tmp_path / name / "cast"
        import_hf(tmp_path / name / "cast-hf", models[name])
    merge(list(models.values()), tmp_path / "merged", average="branches")
