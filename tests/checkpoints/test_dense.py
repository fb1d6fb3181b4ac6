"""Averages and stacks of dense models, against transformers' models and plain torch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints import dense
from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.verify import verify_folder
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from tests.models_hf import random_dense

IDS = torch.arange(40).reshape(2, 20)
DOMAINS = {"math": 11, "law": 12}


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """Two dense models beside the anchor (seed 0), as independent as can be."""
    folder = tmp_path_factory.mktemp("dense-domains")
    for name, seed in DOMAINS.items():
        random_dense(seed).save_pretrained(folder / f"{name}-hf")
        import_hf(folder / f"{name}-hf", folder / name)
    return {name: folder / name for name in DOMAINS}


def loaded(checkpoint, tmp_path):
    """The checkpoint as transformers reads it."""
    export_hf(checkpoint, tmp_path / "as-hf", overwrite=True)
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "as-hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()


def mean_of(seeds):
    """A transformers model whose weights are the mean of those of random models."""
    states = [random_dense(seed).state_dict() for seed in seeds]
    model = random_dense(0)
    model.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    return model


def stacked(shared, seeds, rows_LEH):
    """Plain torch: in each layer the FFNs of `seeds`, weighted by a softmax over all, and `shared`
    around them."""
    models = [random_dense(seed) for seed in seeds]
    for index, (layer, rows_EH) in enumerate(zip(shared.model.layers, rows_LEH)):
        ffns = [model.model.layers[index].mlp for model in models]

        def weighted(x_BSH, ffns=ffns, rows_EH=rows_EH):
            shares_BSE = torch.softmax(x_BSH @ rows_EH.T, dim=-1)
            return sum(shares_BSE[..., e, None] * ffn(x_BSH) for e, ffn in enumerate(ffns))

        layer.mlp.forward = weighted
    return shared


@pytest.mark.parametrize("with_anchor", [True, False])
def test_an_average_is_the_mean_that_torch_computes(with_anchor, anchor, domains, tmp_path):
    done = dense.average(domains, tmp_path / "mean", anchor if with_anchor else None)
    expected = mean_of([0, 11, 12] if with_anchor else [11, 12])
    found = loaded(tmp_path / "mean", tmp_path)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-5, atol=1e-5)
    assert done.model == ModelConfig.load(anchor) and done.model.num_experts is None
    ffn = next(d for d in done.by_group if d.group == "ffn")
    assert ffn.largest > 0.5


@pytest.mark.parametrize(
    "shared, seeds",
    [
        ("published", [0, 11, 12]),
        ("branches", [11, 12]),
        ("law", [12]),
        ("anchor", [0]),
    ],
)
def test_a_stack_computes_what_its_parts_do(shared, seeds, anchor, domains, tmp_path):
    done = dense.stack(anchor, domains, tmp_path / "stack", shared, seed=5)
    found = loaded(tmp_path / "stack", tmp_path)
    assert found.config.num_experts == found.config.num_experts_per_tok == 3
    assert not found.config.norm_topk_prob
    rows_LEH = [layer.mlp.gate.weight for layer in found.model.layers]
    expected = stacked(mean_of(seeds), [0, 11, 12], rows_LEH)
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-5)
    assert done.model.all_expert_names == ("anchor", "math", "law")
    names = {0: "anchor", 11: "math", 12: "law"}
    is_mean = shared in ("published", "branches")
    assert done.model.merged_from == (tuple(names[seed] for seed in seeds) if is_mean else ())


def test_router_rows_are_drawn_as_those_of_branches(anchor, domains, tmp_path):
    dense.stack(anchor, {"math": domains["math"]}, tmp_path / "stack", seed=5)
    branch(anchor, tmp_path / "branch", seed=5)
    rows = [
        loaded(tmp_path / name, tmp_path).model.layers[2].mlp.gate.weight
        for name in ("stack", "branch")
    ]
    assert torch.equal(*rows)
    assert 0.01 < rows[0].std() < 0.03


def test_many_processes_write_the_same_bytes(anchor, domains, small_parts, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        dense.average(domains, tmp_path / f"mean-{name}", anchor, processes=processes)
        dense.stack(anchor, domains, tmp_path / f"stack-{name}", processes=processes)
    for kind in ("mean", "stack"):
        one, two = (tmp_path / f"{kind}-{name}" for name in ("one", "two"))
        files = sorted(path.name for path in one.iterdir() if path.is_file())
        assert len([f for f in files if f.endswith(".distcp")]) > 1
        assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
        verify_folder(one)


def test_what_makes_no_sense_is_refused(anchor, domains, tmp_path):
    branch(anchor, tmp_path / "branch")
    random_dense(hidden_size=96).save_pretrained(tmp_path / "wide-hf")
    import_hf(tmp_path / "wide-hf", tmp_path / "wide")
    before = set(tmp_path.iterdir())
    for models, shared, message in [
        ({"branch": tmp_path / "branch"}, "published", "has 2 experts; dense models are needed"),
        ({"wide": tmp_path / "wide"}, "published", "different shape: hidden_size is 96 and 48$"),
        (domains, "code", "there is no such model; there are anchor, math, law"),
        ({}, "published", "give at least two"),
    ]:
        with pytest.raises(BarError, match=message):
            dense.stack(anchor, models, tmp_path / "out", shared)
    with pytest.raises(BarError, match="give at least two"):
        dense.average({"math": domains["math"]}, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
