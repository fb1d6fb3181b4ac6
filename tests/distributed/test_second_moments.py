"""Second moments that a stage leaves for a merge are AdamW's, whatever layout it trained in."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.checkpoints.merging.sources import BAND
from megatron_bar.checkpoints.names import slots
from megatron_bar.checkpoints.second_moments import FOLDER, SecondMoments
from megatron_bar.checkpoints.verify import verify_folder
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.train import SFT_GROUPS
from tests.distributed.stages import run, training
from tests.layouts import EXPERTS

pytestmark = pytest.mark.distributed


def _left(checkpoint):
    """Second moments by tensor."""
    found, moments = {}, SecondMoments(checkpoint)
    for slot in slots(ModelConfig.load(checkpoint)):
        if (bands := moments.bands(slot, BAND)) is not None:
            found[slot.label] = torch.cat(list(bands))
    return found


def test_every_layout_leaves_the_same_moments(checkpoint, tmp_path):
    settings = dict(second_moments=True, dtype="float32")
    run(checkpoint, EXPERTS["tp1"], training(SFT_GROUPS, **settings), tmp_path / "one")
    run(checkpoint, EXPERTS["tp2pp2ep2"], training(SFT_GROUPS, **settings), tmp_path / "many")
    one, many = (_left(tmp_path / name / "checkpoint") for name in ("one", "many"))
    # What is shared and was open.
    assert (
        set(one)
        == set(many)
        == {
            "embedding.word_embeddings.weight",
            "decoder.final_layernorm.weight",
            "output_layer.weight",
        }
    )
    for name in one:
        assert one[name].dtype is torch.float32 and one[name].max() > 0
        rows = min(len(one[name]), len(many[name]))  # layouts pad the vocabulary differently
        torch.testing.assert_close(one[name][:rows], many[name][:rows], rtol=1e-2, atol=1e-9)
    assert "have the model's shapes" in verify_folder(tmp_path / "many" / "checkpoint")


def test_none_are_left_unasked(checkpoint, tmp_path):
    run(checkpoint, EXPERTS["tp1"], training(SFT_GROUPS), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint" / FOLDER).exists()
    assert _left(tmp_path / "run" / "checkpoint") == {}
