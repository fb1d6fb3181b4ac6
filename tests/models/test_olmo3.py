"""What OLMo-3 may say otherwise, and OLMo-3 with BAR's experts.

What it has in common with others is in test_families.py and tests/distributed/test_parity.py.
"""

from __future__ import annotations

import pytest
import torch

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from tests.models_hf import imported, random_olmo3

WINDOW = 5
TOKENS_BS = torch.arange(60).reshape(2, 30) * 5 % 331


@pytest.fixture(scope="module")
def theirs():
    model = random_olmo3()
    assert model.config.sliding_window == WINDOW < TOKENS_BS.shape[1]
    return model


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory):
    return imported(theirs, tmp_path_factory.mktemp("olmo3"))


@torch.no_grad()
def _logits(checkpoint):
    with process_groups(Layout()):
        model = build_model(ModelConfig.load(checkpoint), Layout())
        load_model(model, checkpoint)
        positions_BS = torch.arange(TOKENS_BS.shape[1]).expand_as(TOKENS_BS)
        return model.eval()(TOKENS_BS, positions_BS, None)[..., :331]


def _assert_equal(ours_BSV, theirs_BSV):
    assert ((ours_BSV - theirs_BSV).abs().max() / theirs_BSV.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "sizes",
    [
        {"rope_scaling": None},
        {"rope_theta": 10_000.0},
        {
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "full_attention",
                "full_attention",
            ]
        },
        {"layer_types": ["full_attention"] * 4},
        # A ramp from the second to the fourth of the four frequencies.
        {
            "rope_theta": 10_000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 64,
                "attention_factor": 1.5,
                "beta_fast": 0.5,
                "beta_slow": 0.05,
            },
        },
    ],
    ids=["no YaRN", "another theta", "other layers", "no sliding layer", "another YaRN"],
)
@torch.no_grad()
def test_logits_without_a_mask_equal_transformers(sizes, tmp_path):
    theirs = random_olmo3(**sizes)
    theirs.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    _assert_equal(_logits(tmp_path / "checkpoint"), theirs(TOKENS_BS).logits)


@torch.no_grad()
def test_branch_and_merge_keep_windows_and_rope(theirs, checkpoint, tmp_path):
    """Experts that are copies of one FFN compute the dense model."""
    for name in ("math", "code"):
        branch(checkpoint, tmp_path / name, expert_name=name)
    merge([tmp_path / "math", tmp_path / "code"], tmp_path / "merged", checkpoint)
    for name in ("math", "merged"):
        _assert_equal(_logits(tmp_path / name), theirs(TOKENS_BS).logits)


def test_experts_are_not_exported(checkpoint, tmp_path):
    branch(checkpoint, tmp_path / "branch")
    with pytest.raises(BarError, match="Hugging Face has no class for OLMo-3 with experts"):
        export_hf(tmp_path / "branch", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["branch"]
