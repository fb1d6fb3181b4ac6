"""How much of each source goes in: by size, repeat, weight, or a share of every one."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_bar.data.mixture import check_mixture, natural_size, picks, shares, stratified
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError


def source(name: str, **more) -> Source:
    return Source(path=f"{name}.jsonl", **more)


def test_natural_sizes():
    sources = [source("a"), source("b", repeat=3)]
    assert natural_size(sources, [100, 50]) == 250
    assert shares(sources, [100, 50]) == [0.4, 0.6]
    taken = picks(sources, [100, 50], seed=0)
    assert taken[0].tolist() == list(range(100))
    assert taken[1].tolist() == list(range(50)) * 3


def test_weights_shift_what_the_mixture_is_made_of():
    sources = [source("a", weight=1), source("b", weight=3)]
    assert shares(sources, [100, 300]) == shares(sources, [1, 10_000]) == [0.25, 0.75]
    small, large = picks(sources, [100, 60], seed=0)
    assert (len(small), len(large)) == (40, 120)  # 160 in all, as without weights
    assert np.bincount(small).max() == 1 and np.bincount(large).tolist() == [2] * 60
    _, partly = picks([source("a", weight=1), source("b", weight=4)], [100, 50], seed=0)
    assert sorted(set(np.bincount(partly))) == [2, 3] and len(partly) == 120
    again = picks(sources, [100, 60], seed=0)[0]
    assert small.tolist() == again.tolist() != picks(sources, [100, 60], seed=1)[0].tolist()


@pytest.mark.parametrize(
    "sources, fault",
    [
        ([source("a"), source("a")], "two data sources are called 'a'"),
        ([source("a", weight=1), source("b")], "a has a weight and b has none; give all or none"),
        ([source("a", weight=0)], "weight is 0"),
        ([source("a", weight=2, repeat=2)], "either weight or repeat"),
    ],
)
def test_refusals(sources, fault):
    with pytest.raises(BarError, match=fault):
        check_mixture(sources)


def test_stratified():
    sizes = {"math": 200, "code": 100, "safety": 3}
    sample = stratified(sizes, 0.05, seed=0)
    assert {name: len(drawn) for name, drawn in sample.items()} == {
        "math": 10,
        "code": 5,
        "safety": 1,
    }
    for name, drawn in sample.items():
        assert drawn.tolist() == sorted(set(drawn)) and drawn.max() < sizes[name]
        assert drawn.tolist() == stratified(sizes, 0.05, seed=0)[name].tolist()
    assert sample["math"].tolist() != stratified(sizes, 0.05, seed=1)["math"].tolist()
    # Another source, or another order, leaves the others' draws alone.
    assert stratified({"code": 100}, 0.05, seed=0)["code"].tolist() == sample["code"].tolist()
    assert stratified({"code": 100}, 1, seed=0)["code"].tolist() == list(range(100))
    for fraction in (0, -0.1, 1.1):
        with pytest.raises(BarError, match="fraction is"):
            stratified(sizes, fraction, seed=0)
