"""Import and export: bit-exact, whole or not at all, and wrong input gets one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.runtime.errors import BarError


def _tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


@pytest.mark.parametrize("kind", ["dense_hf", "experts_hf"])
def test_tensors_are_bit_exact_through_import_and_export(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    import_hf(source, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    assert _same(_tensors(source), _tensors(tmp_path / "hf"))


def test_export_writes_experts_one_by_one_and_transformers_loads_it(experts_hf, tmp_path):
    import_hf(experts_hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    assert "model.layers.3.mlp.experts.2.down_proj.weight" in _tensors(tmp_path / "hf")
    ours, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = AutoModelForCausalLM.from_pretrained(experts_hf)
    tokens = torch.arange(40).reshape(2, 20)
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_export_in_shards_with_an_index(experts_hf, tmp_path):
    import_hf(experts_hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf", shard_bytes=200_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(
        t.numel() * 4 for t in _tensors(tmp_path / "hf").values()
    )
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf")


def test_export_casts_on_request(dense_hf, tmp_path):
    import_hf(dense_hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf", dtype=torch.bfloat16)
    expected = {name: t.bfloat16() for name, t in _tensors(dense_hf).items()}
    assert _same(_tensors(tmp_path / "hf"), expected)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_model_card_states_k_and_the_routing_rule(experts_hf, tmp_path):
    import_hf(experts_hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "num_experts_per_tok: 3" in card
    assert "softmax over all" in card and "without renormalisation" in card


def _edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


SPOILED = {
    "not an OLMo": (lambda f: _edit_config(f, model_type="llama"), "model_type is 'llama'"),
    "tied embeddings": (lambda f: _edit_config(f, tie_word_embeddings=True), "tie_word_embeddings"),
    "RoPE scaling": (lambda f: _edit_config(f, rope_scaling={"rope_type": "yarn"}), "rope_type"),
    "config gone": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config broken": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "holds neither"),
    "weights truncated": (_truncate, "not a whole safetensors file"),
    "tensor missing": (
        lambda f: _change_tensors(f, lambda t: t.pop("model.norm.weight")),
        "model.norm.weight is missing",
    ),
    "tensor too many": (
        lambda f: _change_tensors(f, lambda t: t.update(extra=torch.ones(1))),
        "extra is not part of this model",
    ),
    "wrong shape": (
        lambda f: _change_tensors(f, lambda t: t.update({"model.norm.weight": torch.ones(5)})),
        "model.norm.weight has shape (5,)",
    ),
}


@pytest.mark.parametrize("spoil, message", SPOILED.values(), ids=SPOILED)
def test_import_refuses_in_one_line_and_leaves_nothing(spoil, message, dense_hf, tmp_path):
    source = shutil.copytree(dense_hf, tmp_path / "source")
    spoil(source)
    with pytest.raises(BarError) as raised:
        import_hf(source, tmp_path / "out")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_import_keeps_what_stands(dense_hf, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(BarError, match="exists already"):
        import_hf(dense_hf, tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


def test_a_failure_while_writing_leaves_nothing(dense_hf, tmp_path, monkeypatch):
    from megatron_bar.checkpoints.names import Slot

    def fail(self, tensors):
        raise OSError("No space left on device")

    monkeypatch.setattr(Slot, "from_hf", fail)
    with pytest.raises(BarError, match="can't be written: No space left"):
        import_hf(dense_hf, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_a_damaged_checkpoint(dense_hf, tmp_path):
    import_hf(dense_hf, tmp_path / "checkpoint")
    for file in (tmp_path / "checkpoint").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BarError, match="damaged"):
        export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
