"""Digests of parameter groups: of all, or of some without reading the rest."""

from __future__ import annotations

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.training.groups import anchor_digest, group_digests
from tests.models_hf import random_experts


def test_some_groups_have_the_digests_they_have_among_all(tmp_path, monkeypatch):
    random_experts(3).save_pretrained(tmp_path / "hf")
    checkpoint = tmp_path / "checkpoint"
    model = import_hf(tmp_path / "hf", checkpoint)
    read, real = [], CheckpointReader.read
    monkeypatch.setattr(CheckpointReader, "read",
                        lambda reader, slot: (read.append(slot), real(reader, slot))[1])
    whole = group_digests(checkpoint)
    assert len(set(whole.values())) == len(whole) and {"expert.2", "router.2", "head"} < set(whole)
    for only in ({"router.1"}, {"expert.0", "router.2", "final_norm"}):
        assert group_digests(checkpoint, only) == {group: whole[group] for group in only}
    read.clear()
    assert anchor_digest(checkpoint) == whole["expert.0"]
    assert len(read) == 2 * model.num_layers
    assert {slot.index[1] for slot in read} == {0}
