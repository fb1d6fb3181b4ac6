"""Merges by a rule, of whole models: plain torch says what comes out, transformers reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_bar.checkpoints import dense
from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.merging import rule_named, sources
from megatron_bar.checkpoints.token_counts import write_token_counts
from megatron_bar.cli import main
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.names import MERGE_RULES
from megatron_bar.runtime.errors import BarError
from tests.checkpoints.test_merge import equal, experts_of, is_shared, tensors, trained
from tests.models_hf import imported, random_dense, random_model

FUSED = ("q_proj.weight", "k_proj.weight", "v_proj.weight")  # in one tensor here


@pytest.fixture(autouse=True)
def small_bands(monkeypatch):
    """Small tensors are read in several bands, as large ones are."""
    monkeypatch.setattr(sources, "BAND", 2000)


@pytest.fixture(scope="module")
def moved(anchor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moved")
    return [trained(anchor, folder, name, seed) for seed, name in enumerate(("math", "code"))]


def _ties(base, branches, density):
    """As its paper has it, on one tensor as a whole."""
    kept = []
    for tensor in branches:
        change = (tensor - base).float()
        rank = max(1, int(density * change.numel()))
        least = change.abs().flatten().sort(descending=True).values[rank - 1]
        kept.append(torch.where(change.abs() >= least, change, 0))
    stacked = torch.stack(kept)
    agree = stacked.sign() == torch.where(stacked.sum(0) < 0, -1, 1)
    return base + (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def test_rules_of_whole_branches_are_what_torch_says(anchor, moved, tmp_path):
    base = random_dense(0).state_dict()
    found = {}
    for name, setting in {"task_arithmetic": "--scale=0.7", "ties": "--density=0.3"}.items():
        target = tmp_path / name
        assert (
            main(
                [
                    "merge",
                    *map(str, moved),
                    "--rule",
                    name,
                    setting,
                    "--anchor",
                    str(anchor),
                    "--out",
                    str(target),
                ]
            )
            == 0
        )
        model = ModelConfig.load(target)
        assert model.merged_from == () and model.experts_per_token == 3
        found[name] = tensors(target, tmp_path)
    both = [tensors(b, tmp_path) for b in moved]
    for name in filter(is_shared, base):
        a, b = (model[name] for model in both)
        summed = base[name] + 0.7 * (a - base[name] + b - base[name])
        torch.testing.assert_close(found["task_arithmetic"][name], summed, rtol=1e-5, atol=1e-6)
        if not name.endswith(FUSED):
            expected = _ties(base[name], (a, b), 0.3)
            torch.testing.assert_close(found["ties"][name], expected, rtol=1e-5, atol=1e-6)
    for model in found.values():
        assert equal(experts_of(model, 0), experts_of(both[0], 0))
        assert equal(experts_of(model, 2), experts_of(both[1], 1))


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_what_no_branch_moved_keeps_its_bits(rule, anchor, tmp_path):
    for name in "ab":
        branch(anchor, tmp_path / name, expert_name=name)
        write_token_counts(tmp_path / name, np.arange(random_dense(0).config.vocab_size))
    done = merge(
        [tmp_path / "a", tmp_path / "b"],
        tmp_path / "merged",
        anchor,
        rule=rule_named(rule, density=0.5, t=0.3),
    )
    found, base = tensors(tmp_path / "merged", tmp_path), random_dense(0).state_dict()
    assert all(torch.equal(found[n], base[n]) for n in base if is_shared(n))
    assert all(d.largest == 0 for d in done.by_group)


def test_bf16_is_combined_in_fp32(tmp_path):
    start = imported(random_dense(0).bfloat16(), tmp_path)
    moved = [
        trained(start, tmp_path, name, seed, dtype=torch.bfloat16) for seed, name in enumerate("ab")
    ]
    merge(moved, tmp_path / "merged", start, rule=rule_named("task_arithmetic"))
    found = tensors(tmp_path / "merged", tmp_path)
    base, a, b = (tensors(f, tmp_path) for f in (start, *moved))
    for name in filter(is_shared, base):
        assert found[name].dtype is torch.bfloat16
        exact = base[name].float() + (
            (a[name].float() - base[name].float()) + (b[name].float() - base[name].float())
        )
        assert torch.equal(found[name], exact.bfloat16()), name


def test_tied_embeddings_are_one_tensor(tmp_path):
    start, *others = (
        imported(random_model("Qwen3, tied", seed), tmp_path / str(seed)) for seed in range(3)
    )
    dense.average(
        dict(zip("ab", others)),
        tmp_path / "merged",
        start,
        rule_named("task_arithmetic", scale=0.5),
    )
    found = tensors(tmp_path / "merged", tmp_path)
    a, b = (random_model("Qwen3, tied", seed).state_dict() for seed in (1, 2))
    name = "model.embed_tokens.weight"  # base + (a - base + b - base) / 2
    torch.testing.assert_close(found[name], 0.5 * (a[name] + b[name]), rtol=1e-5, atol=1e-6)
    assert "lm_head.weight" not in found


def test_distances_are_from_what_was_made(anchor, moved, tmp_path):
    done = merge(moved, tmp_path / "merged", anchor, rule=rule_named("slerp", t=0.0))
    found = {d.group: d for d in done.by_group}["head"]
    a, b = (tensors(f, tmp_path)["lm_head.weight"] for f in moved)
    base = random_dense(0).state_dict()["lm_head.weight"]
    farthest = max((x - a).norm() / a.norm() for x in (b, base))
    assert found.largest == pytest.approx(farthest.item(), rel=1e-4)


def test_stacked_dense_models_share_what_a_rule_makes(anchor, tmp_path):
    for name, seed in {"math": 11, "law": 12}.items():
        random_dense(seed).save_pretrained(tmp_path / f"{name}-hf")
        import_hf(tmp_path / f"{name}-hf", tmp_path / name)
    models = {name: tmp_path / name for name in ("math", "law")}
    done = dense.stack(anchor, models, tmp_path / "out", rule=rule_named("task_arithmetic"))
    assert done.model.merged_from == ()
    found = tensors(tmp_path / "out", tmp_path)["lm_head.weight"]
    base, a, b = (random_dense(s).state_dict()["lm_head.weight"] for s in (0, 11, 12))
    torch.testing.assert_close(found, a + b - base, rtol=1e-5, atol=1e-6)


def test_a_rule_wants_branches_and_their_anchor(anchor, moved, tmp_path):
    rule = rule_named("ties")
    merge(moved, tmp_path / "whole", anchor)
    for models, dense_anchor, more, message in [
        (moved, None, {}, "give --anchor CKPT"),
        ([tmp_path / "whole"], None, {}, "whole is a merged model, and --rule combines changes"),
        (moved, anchor, {"average": "branches"}, "leave out --average and --weights"),
        (moved, anchor, {"weights": ["*=math:1"]}, "leave out --average and --weights"),
    ]:
        with pytest.raises(BarError, match=message):
            merge(models, tmp_path / "out", dense_anchor, rule=rule, **more)
    assert not (tmp_path / "out").exists()


def test_a_model_that_a_rule_made_wants_to_be_weighed(anchor, moved, tmp_path):
    """It is no mean of so many models, to which one more could be added."""
    merge(moved[:1], tmp_path / "one", anchor, rule=rule_named("ties"))
    assert ModelConfig.load(tmp_path / "one").merged_from == ()
    with pytest.raises(BarError, match="doesn't say how many models"):
        merge([tmp_path / "one", moved[1]], tmp_path / "out")


def test_the_merged_model_is_an_export_too(anchor, moved, tmp_path):
    merge(moved, tmp_path / "merged", anchor, rule=rule_named("dare_ties", seed=3))
    assert export_hf(tmp_path / "merged", tmp_path / "hf").num_experts == 3
