"""Intervals, against values worked out by hand and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_bar.analysis.intervals import (
    BOOTSTRAP,
    WILSON,
    bootstrap,
    score_interval,
    wilson_interval,
)


# With z² = 3.8414588, for 0.73 of 100: the centre is (0.73 + z²/200) / (1 + z²/100)
# = 0.749207294 / 1.038414588 = 0.7214915, the half width z * sqrt(0.73 * 0.27/100 + z²/40000)
# / 1.038414588 = 1.9599640 * sqrt(0.001971 + 0.0000960365) / 1.038414588 = 0.0858134.
@pytest.mark.parametrize(
    "score, count, low, high",
    [
        (0.73, 100, 0.6356781, 0.8073049),
        (0.0, 10, 0.0, 3.8414588 / 13.8414588),
        (1.0, 10, 10 / 13.8414588, 1.0),
        (0.5, 4, 0.1500389, 0.8499611),
    ],
)
def test_wilson(score, count, low, high):
    assert wilson_interval(score, count) == pytest.approx((low, high), abs=2e-6)


def test_the_same_as_scipy():
    stats = pytest.importorskip("scipy.stats", reason="comes with the extra eval")
    for count in (1, 2, 7, 100, 2048):
        for right in {0, 1, count // 3, count}:
            theirs = stats.binomtest(right, count).proportion_ci(method="wilson")
            assert wilson_interval(right / count, count) == pytest.approx(
                (theirs.low, theirs.high), abs=1e-12
            )
    items = np.random.default_rng(1).beta(2, 3, 200)
    theirs = stats.bootstrap([items], np.mean, n_resamples=4000, method="percentile", rng=0)
    ours = bootstrap(items)
    width = ours.high - ours.low
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval, abs=0.05 * width)


def test_wilson_of_nothing_says_nothing():
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_a_standard_error_away_on_either_side():
    items = np.random.default_rng(1).beta(2, 3, 400)
    found = bootstrap(items)
    half = 1.96 * items.std() / 20
    assert found.mean == pytest.approx(items.mean())
    assert (found.low, found.high) == pytest.approx(
        (items.mean() - half, items.mean() + half), abs=0.1 * half
    )
    assert bootstrap(items) == found


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_95_times_in_100():
    random = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        found = bootstrap(random.choice([0.0, 0.25, 1.0], 60, p=[0.3, 0.5, 0.2]))
        held += found.low <= 0.325 <= found.high
    assert held >= 88


@pytest.mark.parametrize(
    "items, method",
    [
        ([1.0, 0.0, 1.0], WILSON),
        ([0.5, 0.0, 1.0], BOOTSTRAP),
        ([0.5, 0.5], WILSON),
        (None, WILSON),
    ],
)
def test_the_method_goes_by_the_items(items, method):
    assert score_interval({"score": 0.5, "count": 3, "items": items}).method == method
