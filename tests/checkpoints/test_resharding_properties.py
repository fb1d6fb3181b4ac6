"""Whatever layout wrote a checkpoint: every slice of it is read as it was, whole and in bands."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.dcp_index import Chunk, Index, Place, StoredTensor, write_index
from megatron_bar.checkpoints.names import slots
from megatron_bar.checkpoints.torch_archive import frames
from megatron_bar.models.config import ModelConfig
from tests.properties import few

MODEL = ModelConfig(
    vocab_size=20, hidden_size=6, ffn_hidden_size=4, num_layers=3, num_heads=2, num_kv_heads=1
).with_experts(2)
BY_KEY = {slot.key: slot for slot in slots(MODEL)}


@st.composite
def cuts(draw, size: int) -> list[range]:
    """An axis in up to three pieces, as ranks hold it."""
    edges = draw(st.sets(st.integers(1, size - 1), max_size=2)) if size > 1 else set()
    return [range(a, b) for a, b in itertools.pairwise([0, *sorted(edges), size])]


@st.composite
def layouts(draw) -> tuple[str, list[list[range]], torch.dtype]:
    """A tensor of the model, and how each of its axes is cut; rows of padding may be missing."""
    key = draw(st.sampled_from(sorted(BY_KEY)))
    shape = list(BY_KEY[key].global_shape)
    if not BY_KEY[key].index:  # the vocabulary: padded as the writer's tensor parallelism wants it
        shape[0] -= draw(st.integers(0, min(100, shape[0] - 1)))
    return (
        key,
        [draw(cuts(size)) for size in shape],
        draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )


@few
@given(layouts(), st.integers(1, 40))
def test_a_tensor_in_any_pieces(layout, numbers):
    key, axes, dtype = layout
    shape = torch.Size(axis[-1].stop for axis in axes)
    stored = torch.arange(1, shape.numel() + 1).reshape(shape).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), key, stored, axes)
        reader = CheckpointReader(Path(folder))
        for slot in (slot for slot in slots(MODEL) if slot.key == key):
            expected = torch.zeros(slot.shape, dtype=dtype)
            held = stored[slot.index]
            expected[: len(held)] = held
            assert torch.equal(reader.read(slot), expected)
            assert torch.equal(torch.cat(list(reader.bands(slot, numbers))), expected)
            assert reader.dtype(slot) == dtype


def _write(folder: Path, key: str, tensor: torch.Tensor, axes: list[list[range]]) -> None:
    """A checkpoint of one tensor, a file for each piece as each rank writes its own."""
    index = Index({key: StoredTensor(tensor.dtype, tensor.shape, [])}, {})
    for number, box in enumerate(itertools.product(*axes)):
        chunk = Chunk(torch.Size(axis.start for axis in box), torch.Size(map(len, box)))
        piece = tensor[tuple(slice(axis.start, axis.stop) for axis in box)].contiguous()
        before, after = frames(chunk.sizes, tensor.dtype)
        content = before + piece.view(torch.uint8).numpy().tobytes() + after
        (folder / f"__{number}_0.distcp").write_bytes(content)
        index.tensors[key].chunks.append(chunk)
        index.places[key, chunk.offsets] = Place(f"__{number}_0.distcp", 0, len(content))
    write_index(folder, index)
