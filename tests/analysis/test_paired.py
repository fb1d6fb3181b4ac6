"""Two models on the same items, by numbers that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_bar.analysis.paired import mcnemar, paired_test


@pytest.mark.parametrize(
    "better, worse, p",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),  # 0, 1 or 2 of 10
        (5, 5, 1.0),
    ],
)
def test_mcnemars_p_is_that_of_coins(better, worse, p):
    assert mcnemar(better, worse) == pytest.approx(p)


def test_the_same_as_scipy():
    stats = pytest.importorskip("scipy.stats", reason="comes with the extra eval")
    for better, worse in ((3, 9), (40, 25), (300, 250), (2, 0)):
        theirs = stats.binomtest(better, better + worse).pvalue
        assert mcnemar(better, worse) == pytest.approx(theirs)


def test_equal_scores_that_fail_at_other_items():
    """Two models that fail at the same items differ less than two that fail anywhere."""
    ours, same, other = (
        {"items": [1.0, 0.0] * 50},
        {"items": [1.0, 0.0] * 50},
        {"items": [1.0, 1.0, 0.0, 0.0] * 25},
    )
    assert paired_test(ours, same).difference.high == 0
    apart = paired_test(ours, other).difference
    assert apart.mean == 0 and apart.high > 0.08 and apart.low < -0.08
    assert paired_test(ours, other).within_noise


def test_a_small_change_is_clear_in_pairs_where_two_intervals_overlap():
    """80 and 90 of 100, and nothing got worse: Wilson's intervals overlap, the p is 2 / 1024."""
    before, after = [0.0] * 20 + [1.0] * 80, [0.0] * 10 + [1.0] * 90
    found = paired_test({"items": after}, {"items": before})
    assert (found.better, found.worse, found.p) == (10, 0, pytest.approx(2 / 1024))
    assert not found.within_noise and found.verdict == "p 0.002"


def test_partial_credit_goes_by_the_interval():
    random = np.random.default_rng(0)
    items = random.uniform(0.2, 0.8, 200)
    near = paired_test(
        {"items": (items + random.normal(0, 0.1, 200)).tolist()}, {"items": items.tolist()}
    )
    assert near.p is None and near.within_noise and near.verdict == "within noise"
    apart = paired_test({"items": (items + 0.1).tolist()}, {"items": items.tolist()})
    assert not apart.within_noise and apart.verdict == "0 is outside"


def test_other_items_are_not_compared():
    asked = {"items": [1.0, 0.0], "samples": [{"item": 0, "prompt": "1 + 1"}]}
    assert paired_test(asked, asked) is not None
    assert paired_test(asked, asked | {"samples": [{"item": 0, "prompt": "1 + 2"}]}) is None
    assert paired_test(asked, {"items": [1.0]}) is None
    assert paired_test(asked, {}) is None


def test_chance_alone_is_called_noise_about_95_times_in_100():
    random = np.random.default_rng(1)
    called = 0
    for _ in range(200):
        hard = random.uniform(0.1, 0.9, 100)
        a, b = ((random.uniform(size=100) < hard).astype(float) for _ in range(2))
        better, worse = int((a > b).sum()), int((a < b).sum())
        called += mcnemar(better, worse) >= 0.05
    assert 188 <= called <= 200  # the exact test is a little cautious
