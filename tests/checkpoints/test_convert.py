"""Import and export: bit-exact, from and to what transformers writes and reads."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.hf_weights import parse_size
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from tests.models_hf import random_dense, random_experts


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


def test_import_keeps_what_stands(dense_hf, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(BarError, match="exists already"):
        import_hf(dense_hf, tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_dtype_is_kept_and_cast_on_request(dtype, dense_hf, tmp_path):
    stored = {name: t.to(dtype) for name, t in _tensors(dense_hf).items()}
    model = random_dense().to(dtype)
    model.save_pretrained(tmp_path / "source")
    import_hf(tmp_path / "source", tmp_path / "kept")
    export_hf(tmp_path / "kept", tmp_path / "hf")
    assert _same(_tensors(tmp_path / "hf"), stored)
    import_hf(tmp_path / "source", tmp_path / "cast", dtype=torch.float32)
    export_hf(tmp_path / "cast", tmp_path / "hf32")
    assert _same(_tensors(tmp_path / "hf32"), {n: t.float() for n, t in stored.items()})


def test_torch_itself_reads_our_checkpoints(experts_hf, tmp_path, small_parts):
    import_hf(experts_hf, tmp_path / "checkpoint")
    assert len(list((tmp_path / "checkpoint").glob("*.distcp"))) > 2
    reader = CheckpointReader(tmp_path / "checkpoint")
    all_slots = list(slots(ModelConfig.load(tmp_path / "checkpoint")))
    loaded = {slot.key: torch.full(slot.global_shape, -1.0) for slot in all_slots}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(tmp_path / "checkpoint"), no_dist=True)
    for slot in all_slots:
        assert torch.equal(loaded[slot.key][slot.index], reader.read(slot))


def test_reads_what_torch_writes_beside_other_state(experts_hf, tmp_path):
    """A training checkpoint: whole keys in one chunk, optimizer states beside the model's."""
    import_hf(experts_hf, tmp_path / "ours")
    reader = CheckpointReader(tmp_path / "ours")
    model = ModelConfig.load(tmp_path / "ours")
    state = {slot.key: torch.empty(slot.global_shape) for slot in slots(model)}
    for slot in slots(model):
        state[slot.key][slot.index] = reader.read(slot)
    state["optimizer.state.exp_avg.decoder"] = torch.ones(7)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "torchs"), no_dist=True)
    model.save(tmp_path / "torchs")
    export_hf(tmp_path / "torchs", tmp_path / "hf")
    assert _same(_tensors(tmp_path / "hf"), _tensors(experts_hf))


def test_sizes():
    assert parse_size("5GB") == 5 * 10**9 and parse_size("1.5 mib") == 3 * 2**19
    with pytest.raises(BarError, match="not a size"):
        parse_size("5")


def test_buffers_of_old_releases_are_ignored_and_said(dense_hf, tmp_path, capsys):
    source = shutil.copytree(dense_hf, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.position_ids"] = torch.arange(8)
    save_file(tensors, source / "model.safetensors")
    import_hf(source, tmp_path / "checkpoint")
    assert "model.layers.0.self_attn.rotary_emb.inv_freq and 1 more ignored" in " ".join(
        capsys.readouterr().out.split()
    )
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    assert (
        load_file(tmp_path / "hf" / "model.safetensors").keys()
        == load_file(dense_hf / "model.safetensors").keys()
    )


def test_an_export_tells_the_dtype_of_most_weights(tmp_path):
    model = random_experts(2).bfloat16()
    model.save_pretrained(tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    wide = {name: t.float() for name, t in tensors.items() if "embed" in name or "norm" in name}
    save_file(tensors | wide, tmp_path / "source" / "model.safetensors")
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
