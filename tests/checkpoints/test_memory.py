"""Converters hold blocks of tensors: their memory doesn't grow with the model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.direct import BUFFER_BYTES
from megatron_bar.checkpoints.hf import hf_config
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import ModelConfig

# 230 MB, the largest tensor 34 MB: a whole-model copy breaks the bound.
MODEL = ModelConfig(
    vocab_size=8192,
    hidden_size=1024,
    ffn_hidden_size=8192,
    num_layers=4,
    num_heads=16,
    num_kv_heads=8,
)
LARGEST = 2 * 2 * 8192 * 1024
# Above two tensors: Python, the allocator, a block or two. The promise leaves 1 GiB for it.
BEYOND_TENSORS = 64 * 2**20

_WATCH = """
import sys, threading, time
from pathlib import Path
import torch
from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.dcp_index import import_classes
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

folder = Path(sys.argv[1])
torch.ones(8).sum()
import_classes()
before = peak = anonymous()
threading.Thread(target=watch, daemon=True).start()
for convert in (
    lambda: import_hf(folder / "hf", folder / "anchor"),
    lambda: branch(folder / "anchor", folder / "math", expert_name="math"),
    lambda: import_hf(folder / "other-hf", folder / "other"),
    lambda: branch(folder / "other", folder / "code", expert_name="code"),
    lambda: merge([folder / "math", folder / "code"], folder / "merged", folder / "anchor",
                  anchor_ffn="average"),
    lambda: export_hf(folder / "merged", folder / "out"),
):
    convert()
    print(peak - before)
    peak = anonymous()
"""


def _write_hf(folder, seed, model=MODEL):
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        for slot in slots(model)
        for name, shape in zip(slot.hf_names, slot.hf_shapes)
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(model, torch.bfloat16, {})))
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.distributed  # starts a process
def test_memory_is_a_few_tensors(tmp_path):
    size = _write_hf(tmp_path / "hf", 0)
    _write_hf(tmp_path / "other-hf", 1)
    bound = 2 * LARGEST + BEYOND_TENSORS
    assert size > 1.5 * bound
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, str(tmp_path)], capture_output=True, text=True, check=True
    )
    growth = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert len(growth) == 6
    assert max(growth) < bound, [f"{g / 2**20:.0f} MiB" for g in growth]


_WATCH_EXPORT = (
    """
import sys, time, threading
from pathlib import Path
import torch
from megatron_bar.checkpoints.convert import export_hf
"""
    + _WATCH[_WATCH.index("def anonymous") : _WATCH.index("folder = ")]
    + """
torch.ones(8).sum()
from huggingface_hub import split_state_dict_into_shards_factory  # code, which is no buffer
before = peak = anonymous()
threading.Thread(target=watch, daemon=True).start()
export_hf(Path(sys.argv[1]), Path(sys.argv[2]))
print(peak - before)
"""
)


@pytest.mark.distributed  # starts processes
def test_exports_of_any_size_take_the_same_memory(tmp_path):
    """Buffers and bookkeeping, and no copies of tensors, which q, k and v once were."""
    growth = []
    for layers in (2, 8):
        model = dataclasses.replace(MODEL, num_layers=layers, num_heads=32, num_kv_heads=16)
        folder = tmp_path / str(layers)
        _write_hf(folder, 0, model)
        import_hf(folder, folder / "checkpoint")
        done = subprocess.run(
            [sys.executable, "-c", _WATCH_EXPORT, folder / "checkpoint", folder / "out"],
            capture_output=True,
            text=True,
            check=True,
        )
        growth.append(int(done.stdout.split()[-1]))
    assert max(growth) < 2 * BUFFER_BYTES + 12 * 2**20, growth
