"""Mid-training's rows: Megatron's order and masks, exact shares, one order for every layout."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_bar.data.batch import to_batch
from megatron_bar.data.batches import Batches
from megatron_bar.data.blend import BlendedRows, _Tokenizer
from megatron_bar.data.store import StoredDocuments
from megatron_bar.runtime.files import file_digest, write_json

EOS, PAD, LENGTH = 1, 9, 16

pytestmark = pytest.mark.usefixtures("one_process")


def stored(folder: Path, lengths: list[int], first: int) -> StoredDocuments:
    """Documents of unequal length in which no token but eos occurs twice."""
    folder.mkdir(parents=True)
    builder = IndexedDatasetBuilder(str(folder / "tokens.bin"), dtype=np.int32)
    for length in lengths:
        builder.add_document(np.append(np.arange(first, first + length - 1), EOS), [length])
        first += length
    builder.finalize(str(folder / "tokens.idx"))
    write_json(
        folder / "manifest.json", {"documents": len(lengths), "tokens": sum(lengths), "eos": EOS}
    )
    return StoredDocuments(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, StoredDocuments]:
    folder, random = tmp_path_factory.mktemp("sources"), np.random.RandomState(0)
    return {
        "math": stored(folder / "math", random.randint(2, 40, 60).tolist(), 1000),
        "code": stored(folder / "code", random.randint(2, 9, 50).tolist(), 100_000),
    }


def blended(sources, rows: int, cache: Path, seed: int = 0, shares=(0.75, 0.25)) -> BlendedRows:
    return BlendedRows(sources, list(shares)[: len(sources)], rows, rows, LENGTH, seed, cache)


def test_masks_and_positions_are_megatrons(sources, tmp_path):
    """Against GPTDataset with its own attention and position reset and eod_mask_loss."""
    ours = blended(sources, 40, tmp_path / "ours")
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=LENGTH,
        split="1,0,0",
        path_to_cache=str(tmp_path / "its"),
        blend=([documents.prefix for documents in sources.values()], [0.75, 0.25]),
        tokenizer=_Tokenizer(EOS),
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=True,
        create_attention_mask=True,
        add_extra_token_to_sequence=False,
    )
    its = BlendedMegatronDatasetBuilder(GPTDataset, [40, 0, 0], lambda: True, config).build()[0]
    batch = to_batch(ours.take(range(40)), PAD)
    resets = 0
    for row in range(40):
        window = its[row]
        learned = window["loss_mask"] > 0
        assert torch.equal(batch.tokens_BS[row], window["tokens"])
        assert torch.equal(batch.positions_BS[row], window["position_ids"])
        assert torch.equal(batch.attention_mask_B1SS[row], window["attention_mask"])
        assert torch.equal(batch.loss_mask_BS[row], window["loss_mask"])
        assert torch.equal(batch.labels_BS[row][learned], window["labels"][learned])
        assert (batch.sources_BS[row][learned] == window["dataset_id"]).all()
        resets += (window["tokens"][:-1] == EOS).sum()
    assert resets > 40


def test_an_epoch_reads_every_token_once(sources, tmp_path):
    math = {"math": sources["math"]}
    rows = sources["math"].tokens // LENGTH
    taken = blended(math, rows, tmp_path).take(range(rows))
    counted = Counter(taken.tokens_RS[taken.tokens_RS != EOS].tolist())
    everything = {t for n in range(len(sources["math"])) for t in sources["math"].get(n).ids}
    assert set(counted.values()) == {1}
    assert len(everything - {EOS}) - len(counted) < LENGTH  # the last window is not full
    assert (taken.sources_RS == 0).all() and taken.source_names == ("math",)
    same_RS = taken.documents_RS[:, 1:] == taken.documents_RS[:, :-1]
    step_RS = np.diff(taken.tokens_RS, axis=1)
    assert ((step_RS == 1) | (taken.tokens_RS[:, 1:] == EOS) | ~same_RS).all()
    assert (taken.tokens_RS[:, :-1][~same_RS] == EOS).all()


def test_shares_hold_at_every_step(sources, tmp_path):
    rows = blended(sources, 400, tmp_path)
    of_code = np.cumsum(rows.take(range(400)).sources_RS[:, 0] == 1)
    assert np.abs(of_code - 0.25 * np.arange(1, 401)).max() <= 1
    assert of_code[-1] == 100


def test_the_order_is_a_function_of_the_seed(sources, tmp_path):
    first = blended(sources, 60, tmp_path / "a").take(range(60))
    again = blended(sources, 60, tmp_path / "b").take(range(60))
    other = blended(sources, 60, tmp_path / "a", seed=1).take(range(60))
    assert (first.tokens_RS == again.tokens_RS).all()
    assert (first.tokens_RS != other.tokens_RS).any()
    for seed in (-1, 2**40 + 1):
        assert len(blended(sources, 60, tmp_path / "c", seed=seed).take([59])) == 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_layout_reads_the_same_and_a_resume_goes_on(sources, tmp_path, size):
    """Through the data API alone: what the loop asks for, at any number of data-parallel ranks."""
    rows = blended(sources, 48, tmp_path)
    batches = Batches.of(rows, global_batch_size=8, seed=5)
    seen = []
    for step in range(6):
        if step == 3:  # a resume: new objects, the order read from the disk
            rows = blended(sources, 48, tmp_path)
            batches = Batches.of(rows, global_batch_size=8, seed=5)
        for rank in range(size):
            for indices in batches.micro_batches(step, rank, size, 2):
                seen.append(rows.take(indices).tokens_RS)
    assert (np.concatenate(seen) == rows.take(range(48)).tokens_RS).all()


def test_the_order_is_built_once_and_whole(sources, tmp_path):
    blended(sources, 60, tmp_path)
    (folder,) = tmp_path.iterdir()
    times = {path: (path.stat().st_mtime_ns, file_digest(path)) for path in folder.iterdir()}
    assert len(times) == 4 + 4 + 3  # description, and indices, of two datasets and their blend
    blended(sources, 60, tmp_path)
    assert times == {p: (p.stat().st_mtime_ns, file_digest(p)) for p in folder.iterdir()}
    # A build that was killed left half a file under its working name.
    os.rename(folder, folder.with_name(f".{folder.name}.partial"))
    for path in folder.with_name(f".{folder.name}.partial").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    blended(sources, 60, tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    assert {path: digest for path, (_, digest) in times.items()} == {
        path: file_digest(path) for path in folder.iterdir()
    }


def test_fewer_tokens_than_a_row(tmp_path):
    """A source may be shorter than a row; it is read again and again."""
    tiny = {"tiny": stored(tmp_path / "tiny", [5, 4], 10)}
    rows = blended(tiny, 3, tmp_path / "order", shares=[1.0]).take(range(3))
    assert (rows.tokens_RS == EOS).sum() >= 5 and len(rows) == 3


@pytest.mark.parametrize("count", [2, 7, 20])
def test_many_small_sources(tmp_path, count):
    """Megatron asks for a surplus of each source; it has to suffice for few rows, too."""
    some = {
        f"s{n}": stored(tmp_path / f"s{n}", [7, 9, 3 + n], 1000 * (n + 1)) for n in range(count)
    }
    shares = np.arange(1, count + 1) / sum(range(1, count + 1))
    for rows in (1, 3, 50):
        taken = BlendedRows(some, shares.tolist(), rows, rows, LENGTH, 0, tmp_path / "order")
        assert len(taken.take(range(rows))) == rows
