"""Model FLOPs utilisation, of peaks that are measured and of those that are given."""

from __future__ import annotations

import torch

from megatron_bar.training.mfu import PeakFlops


def test_a_measured_peak_is_never_beaten():
    peak = PeakFlops(torch.float32)
    assert 0 < peak.mfu(peak.flops / 2, 1) <= 0.51
    assert peak.mfu(100 * peak.flops, 2) == 1


def test_a_peak_that_is_given_is_taken():
    assert PeakFlops(torch.float32, tflops=2.0).mfu(1e12, 4) == 1 / 8
