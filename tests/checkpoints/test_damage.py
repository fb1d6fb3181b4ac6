"""Wrong or damaged input, a full disk: one line that names file and tensor, and nothing is left."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_bar.checkpoints.convert import check_import, export_hf, import_hf
from megatron_bar.checkpoints.verify import verify_folder
from megatron_bar.runtime.errors import BarError
from tests.models_hf import random_dense

NAN, INF = float("nan"), float("inf")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def exported(dense_hf, tmp_path_factory):
    """A checkpoint and an export of it in shards; both have a manifest."""
    folder = tmp_path_factory.mktemp("exported")
    import_hf(dense_hf, folder / "checkpoint")
    export_hf(folder / "checkpoint", folder / "hf", shard_bytes=200_000)
    return folder


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _config(**changes):
    return lambda folder: _edit(folder / "config.json", **changes)


def _tensors(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def _narrowed(name):
    return _tensors(lambda tensors: tensors.update({name: tensors[name].half()}))


def _pointer(name):
    return lambda folder: (folder / name).write_text("version https://git-lfs.github.com/spec/v1\n")


def _set(name, place, value):
    return _tensors(lambda tensors: tensors[name].__setitem__(place, value))


def _cut(name, count):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - count)


def _flip(name, place):
    def spoil(folder):
        with open(folder / name, "r+b") as file:
            file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))

    return spoil


def _folder_instead(name):
    def spoil(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


PLAIN_HF = {
    "not an OLMo": (_config(model_type="llama"), "model_type is 'llama'"),
    "tied embeddings": (_config(tie_word_embeddings=True), "tie_word_embeddings"),
    "config gone": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config broken": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "holds neither"),
    "a pointer for weights": (_pointer("model.safetensors"), "safetensors is a Git LFS pointer"),
    "a pointer for the tokenizer": (_pointer("tokenizer.json"), "json is a Git LFS pointer, not"),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"a": 1}'),
        "tokenizer.json and what is beside it make no tokenizer",
    ),
    "weights cut": (_cut("model.safetensors", 1000), "not a whole safetensors file"),
    "weights too long": (
        lambda f: os.truncate(
            f / "model.safetensors", (f / "model.safetensors").stat().st_size + 8
        ),
        "shorter or longer than its header says",
    ),
    "weights that aren't": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK" * 99),
        "its header is cut short",
    ),
    "weights empty": (lambda f: os.truncate(f / "model.safetensors", 0), "header is cut short"),
    "header flipped": (_flip("model.safetensors", 8), "its header is damaged"),
    "tensor missing": (
        _tensors(lambda t: t.pop("model.norm.weight")),
        "model.norm.weight is missing",
    ),
    "tensor too many": (
        _tensors(lambda t: t.update(extra=torch.ones(1))),
        "extra is not part of this model",
    ),
    "wrong shape": (
        _tensors(lambda t: t.update({"model.norm.weight": torch.ones(5)})),
        "model.norm.weight has shape (5,)",
    ),
    "wrong dtype": (
        _tensors(lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)})),
        "model.norm.weight has dtype I8",
    ),
    "dtypes differ in a layer": (
        _narrowed("model.layers.0.mlp.up_proj.weight"),
        "source stores model.layers.0.mlp.up_proj.weight in float16 and "
        "model.layers.0.mlp.gate_proj.weight in float32; a checkpoint has one type for both",
    ),
    "dtypes differ between layers": (
        _narrowed("model.layers.1.post_attention_layernorm.weight"),
        "1.post_attention_layernorm.weight in float16 and model.layers.0.post_attention_layernorm",
    ),
    "NaN": (
        _set("model.layers.1.self_attn.k_proj.weight", (3, 5), NAN),
        "model.safetensors: tensor model.layers.1.self_attn.k_proj.weight holds NaN or Inf",
    ),
    "Inf": (
        _set("lm_head.weight", (330, 47), -INF),
        "model.safetensors: tensor lm_head.weight holds NaN or Inf",
    ),
}


def _refused(convert, source, spoil, message, tmp_path):
    source = shutil.copytree(source, tmp_path / "source")
    spoil(source)
    with pytest.raises(BarError) as raised:
        convert(source, tmp_path / "out")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("spoil, message", PLAIN_HF.values(), ids=PLAIN_HF)
def test_import_refuses(spoil, message, dense_hf, tmp_path):
    _refused(import_hf, dense_hf, spoil, message, tmp_path)


def test_layers_of_unlike_types_are_cast_as_the_refusal_says(dense_hf, tmp_path):
    source = shutil.copytree(dense_hf, tmp_path / "source")
    _narrowed("model.layers.1.mlp.down_proj.weight")(source)
    with pytest.raises(BarError, match=r"import \S+source CKPT --dtype float32; .* export CKPT"):
        check_import(source)
    import_hf(source, tmp_path / "cast", torch.float32)
    export_hf(tmp_path / "cast", tmp_path / "folder")
    check_import(tmp_path / "folder")


def _drop_from_index(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def _misplace_in_index(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def _outside(name):
    def spoil(folder):
        text = (folder / INDEX).read_text().replace(f'"{FIRST}"', json.dumps(name))
        (folder / INDEX).write_text(text)

    return spoil


FIRST = "model-00001-of-00003.safetensors"
LAST = "model-00003-of-00003.safetensors"
SHARDS = {
    "shard gone": (lambda f: (f / LAST).unlink(), f"{LAST} is missing, but {INDEX} names it"),
    "shard unreadable": (_folder_instead(LAST), f"{LAST} can't be read"),
    "shard cut": (_cut(LAST, 10), f"{LAST} is not a whole safetensors file"),
    "bit flipped": (
        _flip(LAST, -100),
        f"{LAST}: tensor model.layers.3.mlp.down_proj.weight is not what manifest.json says",
    ),
    "index entry missing": (_drop_from_index, "tensor model.norm.weight is missing"),
    "index entry wrong": (_misplace_in_index, f"lm_head.weight is missing, but {INDEX} says"),
    "index to another folder": (_outside(f"../{FIRST}"), "not the name of a file in this folder"),
    "index to a number": (_outside(7), "into 7, which is not the name of a file"),
    "index empty": (lambda f: (f / INDEX).write_text("{}"), "has no weight_map"),
    "manifest broken": (lambda f: (f / "manifest.json").write_text("[]"), "is not a manifest"),
}


@pytest.mark.parametrize("spoil, message", SHARDS.values(), ids=SHARDS)
def test_import_refuses_shards(spoil, message, exported, tmp_path):
    assert (exported / "hf" / LAST).is_file()
    _refused(import_hf, exported / "hf", spoil, message, tmp_path)


DATA = "__0_0.distcp"
CHECKPOINT = {
    "file gone": (lambda f: (f / DATA).unlink(), f"{DATA} can't be read"),
    "file cut": (_cut(DATA, 5000), f"{DATA} is truncated"),
    "bit flipped": (
        _flip(DATA, 5000),
        f"{DATA}: tensor embedding.word_embeddings.weight is not what manifest.json says",
    ),
    "frame flipped": (_flip(DATA, 70), "damaged"),
    "metadata gone": (lambda f: (f / ".metadata").unlink(), "not a readable checkpoint"),
    "metadata cut": (_cut(".metadata", 100), "not a readable checkpoint"),
    "metadata that runs a command": (
        lambda f: (f / ".metadata").write_bytes(
            b"cos\nsystem\n(S'touch %s/it-ran'\ntR." % bytes(f.parent)
        ),
        "not a readable checkpoint",
    ),
    "model.json gone": (lambda f: (f / "model.json").unlink(), "model.json is missing"),
    "wrong shape": (
        lambda f: _edit(f / "model.json", ffn_hidden_size=64),
        "linear_fc1.weight has shape (4, 160, 48), the model needs (4, 128, 48)",
    ),
    "layers too many": (lambda f: _edit(f / "model.json", num_layers=5), "the model needs (5,"),
    "key missing": (
        lambda f: _edit(f / "model.json", num_experts=2, experts_per_token=2),
        "mlp.experts.experts.linear_fc1.weight is missing",
    ),
}


@pytest.mark.parametrize("spoil, message", CHECKPOINT.values(), ids=CHECKPOINT)
def test_export_refuses(spoil, message, exported, tmp_path):
    _refused(export_hf, exported / "checkpoint", spoil, message, tmp_path)


def test_a_cast_that_overflows_is_refused(tmp_path):
    model = random_dense()
    model.lm_head.weight.data[3, 3] = 1e6
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(BarError, match=r"output_layer.weight overflows to Inf in float16"):
        import_hf(tmp_path / "hf", tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("full_after", [0, 100_000])
def test_a_full_disk_leaves_the_target_untouched(full_after, dense_hf, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    free, pwrite = full_after, os.pwrite

    def write_while_there_is_room(descriptor, data, offset):
        nonlocal free
        if not free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = memoryview(data)[:free]  # the last write before the end is a short one
        free -= len(data)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write_while_there_is_room)
    with pytest.raises(
        BarError,
        match=r"0_0.distcp can't be written: No space left on device "
        r"\(at tensor \S+\)",
    ):
        import_hf(dense_hf, tmp_path / "out", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "precious").exists()


def test_too_small_a_disk_is_reported_before_anything_is_written(dense_hf, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(BarError, match=r"has 1 B free"):
        import_hf(dense_hf, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_damage_anywhere(exported, tmp_path):
    assert "47 tensors" in verify_folder(exported / "hf")
    for number, (folder, spoil, message) in enumerate(
        [
            ("hf", _flip(LAST, -100), "model.layers.3.mlp.down_proj.weight is not what"),
            ("checkpoint", _flip(DATA, 5000), "embedding.word_embeddings.weight is not what"),
            (
                "checkpoint",
                lambda f: _edit(f / "model.json", rope_theta=1.0),
                "model.json is not what",
            ),
            (
                "checkpoint",
                lambda f: (f / "hf/token_ids.json").unlink(),
                "token_ids.json is not what",
            ),
        ]
    ):
        damaged = shutil.copytree(exported / folder, tmp_path / str(number))
        verify_folder(damaged)
        spoil(damaged)
        with pytest.raises(BarError, match=message):
            verify_folder(damaged)


def test_verify_says_what_it_can_without_a_manifest(exported, tmp_path):
    training = shutil.copytree(exported / "checkpoint", tmp_path / "training")
    (training / "manifest.json").unlink()
    assert "their bits aren't proven" in verify_folder(training)
    with open(training / DATA, "r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 8)
    with pytest.raises(BarError, match=r"word_embeddings\.weight holds NaN or Inf"):
        verify_folder(training)


_CUT_MEANWHILE = """
import os, sys
from megatron_bar.checkpoints import plan, write
from megatron_bar.cli import main
plan.PART_BYTES = 50_000
file = sys.argv.pop(1)
write_tensor = write._write_tensor
def cut_and_write(*arguments):
    os.truncate(file, 200_000)
    return write_tensor(*arguments)
write._write_tensor = cut_and_write
sys.exit(main())
"""


@pytest.mark.distributed  # starts processes
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_file_that_fails_under_its_map_is_named(processes, dense_hf, tmp_path):
    """What a failing disk looks like: mapped bytes that can't be had any more.

    Cutting also takes away what another worker is just reading, which kills it.
    """
    source = shutil.copytree(dense_hf, tmp_path / "source")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _CUT_MEANWHILE,
            source / "model.safetensors",
            "import",
            source,
            tmp_path / "out",
            "--processes",
            processes,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1
    expected = r"model\.safetensors (can't be read|is truncated).* \(at tensor model\.layers\."
    assert re.search(expected if processes == "1" else f"{expected}|was killed", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
