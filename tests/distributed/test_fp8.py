"""A stage whose frozen experts multiply in FP8: resumed, in several layouts, frozen bits kept."""

from __future__ import annotations

import pytest

from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import SFT_GROUPS
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed.stages import run, training
from tests.layouts import EXPERTS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]


def _settings(**changes):
    return training(SFT_GROUPS, dtype="bfloat16", fp8_frozen_experts=True, **changes)


def _losses(folder) -> list[float]:
    return [numbers["loss"] for numbers in read_metrics(folder)]


def test_the_same_bits_after_a_kill_and_those_of_the_start_where_frozen(checkpoint, tmp_path):
    whole, killed, plain = (tmp_path / name for name in ("whole", "killed", "plain"))
    run(checkpoint, Layout(), _settings(), whole)
    with pytest.raises(JobFailed):
        run(checkpoint, Layout(), _settings(save_every=1), killed, die_at_save=True)
    run(checkpoint, Layout(), _settings(save_every=1), killed)
    run(checkpoint, Layout(), training(SFT_GROUPS, dtype="bfloat16"), plain)
    result = group_digests(whole / "checkpoint")
    assert result == group_digests(killed / "checkpoint")
    start = group_digests(checkpoint)
    assert {group for group in start if start[group] != result[group]} == set(SFT_GROUPS)
    assert result != group_digests(plain / "checkpoint")


@pytest.mark.parametrize("name, recompute", [("tp2", "full"), ("ep2", "none"), ("tp2pp2", "moe")])
def test_layouts_learn_alike(name, recompute, checkpoint, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(checkpoint, Layout(), _settings(), alone)
    run(checkpoint, EXPERTS[name], _settings(recompute=recompute), shared)
    assert _losses(shared) == pytest.approx(_losses(alone), rel=5e-3)
