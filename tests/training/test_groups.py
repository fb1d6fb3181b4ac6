"""Parameter groups: their digests, and what patterns select."""

from __future__ import annotations

import pytest

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.groups import (
    anchor_digest,
    check_scales,
    group_digests,
    group_sizes,
    matching,
)
from tests.models_hf import random_experts


def test_some_groups_have_the_digests_they_have_among_all(tmp_path, monkeypatch):
    random_experts(3).save_pretrained(tmp_path / "hf")
    checkpoint = tmp_path / "checkpoint"
    model = import_hf(tmp_path / "hf", checkpoint)
    read, real = [], CheckpointReader.read
    monkeypatch.setattr(
        CheckpointReader, "read", lambda reader, slot: (read.append(slot), real(reader, slot))[1]
    )
    whole = group_digests(checkpoint)
    assert len(set(whole.values())) == len(whole) and {"expert.2", "router.2", "head"} < set(whole)
    for only in ({"router.1"}, {"expert.0", "router.2", "final_norm"}):
        assert group_digests(checkpoint, only) == {group: whole[group] for group in only}
    read.clear()
    assert anchor_digest(checkpoint) == whole["expert.0"]
    assert len(read) == 2 * model.num_layers
    assert {slot.index[1] for slot in read} == {0}


TIED, UNTIED = (list(group_sizes(PRESETS[name])) for name in ("toy-qwen3", "toy"))


def test_where_embeddings_are_tied_the_head_is_another_name_of_theirs():
    assert "head" not in TIED and "head" in UNTIED
    assert matching(TIED, ["head", "final_norm"], "x") == ["embeddings", "final_norm"]
    assert matching(UNTIED, ["head", "final_norm"], "x") == ["final_norm", "head"]
    with pytest.raises(BarError, match="'heads' matches no parameter group; there are embeddings"):
        matching(TIED, ["heads"], "x")


@pytest.mark.parametrize(
    "groups, scales, message",
    [
        (
            TIED,
            {"embeddings": 0.1, "head": 0.5},
            "x: embeddings gets 0.1 by 'embeddings' and 0.5 by 'head'; give it one factor",
        ),
        (UNTIED, {"*": 0.1, "ffn": 0.5}, "x: ffn gets 0.1 by '*' and 0.5 by 'ffn'"),
        (UNTIED, {"expert.1": 0.1}, "x: 'expert.1' matches no parameter group"),
        (TIED, {"embeddings": 0.5, "head": 0.5}, None),
        (UNTIED, {"embeddings": 0.1, "head": 0.5, "final*": 1.0}, None),
    ],
    ids=str,
)
def test_a_group_has_one_learning_rate(groups, scales, message):
    if message is None:
        check_scales(groups, scales, "x")
    else:
        with pytest.raises(BarError) as raised:
            check_scales(groups, scales, "x")
        assert str(raised.value).startswith(message)
