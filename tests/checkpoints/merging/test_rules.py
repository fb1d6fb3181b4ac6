"""Rules on numbers that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint

from megatron_bar.checkpoints.merging import rule_named
from megatron_bar.checkpoints.merging.dare import Dare
from megatron_bar.checkpoints.merging.fisher import Fisher
from megatron_bar.checkpoints.merging.row_wise import RowWise
from megatron_bar.checkpoints.merging.slerp import Slerp
from megatron_bar.checkpoints.merging.task_arithmetic import TaskArithmetic
from megatron_bar.checkpoints.merging.ties import Ties, least_kept
from megatron_bar.checkpoints.names import EMBEDDINGS_NAME, HEAD_NAME, shared_names
from megatron_bar.checkpoints.second_moments import PREFIX
from megatron_bar.checkpoints.token_counts import write_token_counts
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from tests.checkpoints.merging.tensors import made, numbers, shared

# Changes of two branches from an anchor of ones: [4, -1, .5, 0] and [-2, -3, 0, 1].
TWO = ([1.0, 1, 1, 1], [5.0, 0, 1.5, 1], [-1.0, -2, 1, 2])


@pytest.mark.parametrize(
    "rule, expected",
    [
        # Sums [2, -4, .5, 1].
        (TaskArithmetic(1.0), [3.0, -3, 1.5, 2]),
        (TaskArithmetic(0.5), [2.0, -1, 1.25, 1.5]),
        # Of four numbers two are kept: [4, -1, 0, 0] and [-2, -3, 0, 0]. Signs of the sums: +, -.
        # The mean of those that agree: 4 of one, (-1 - 3) / 2 of two.
        (Ties(0.5, 1.0), [5.0, -1, 1, 1]),
        (Ties(0.5, 0.5), [3.0, 0, 1, 1]),
        # One is kept of each, 4 and -3.
        (Ties(0.25, 1.0), [5.0, -2, 1, 1]),
        # All: the third and fourth are of one branch each, and 0 counts for none.
        (Ties(1.0, 1.0), [5.0, -1, 1.5, 2]),
        # Nothing is dropped, so nothing is rescaled.
        (Dare(1.0, 1.0, seed=0, elects=False), [3.0, -3, 1.5, 2]),
        (Dare(1.0, 1.0, seed=0, elects=True), [5.0, -1, 1.5, 2]),
    ],
    ids=str,
)
def test_changes_are_combined_as_by_hand(rule, expected):
    for rows in (1, 3, 4):
        assert made(rule, numbers(*TWO, rows=rows)).tolist() == expected


def test_ties_of_three_elects_by_size_not_by_number():
    """+3 outweighs two of -1; where they cancel the sign is +."""
    tensor = numbers([0.0, 0.0], [3.0, 2.0], [-1.0, -1.0], [-1.0, -1.0])
    assert made(Ties(1.0, 1.0), tensor).tolist() == [3.0, 2.0]
    assert made(Ties(1.0, 1.0), numbers([0.0], [-3.0], [1.0], [1.0])).tolist() == [-3.0]


def test_ties_keeps_what_is_as_large_as_the_last_one():
    tensor = numbers([0.0] * 4, [1.0, -1, 1, 0.5], [9.0, 8, 7, 6])
    assert least_kept(tensor, 0.5).tolist() == [1.0, 8.0]


@pytest.mark.parametrize("density", [0.003, 0.1, 0.5, 0.999])
def test_the_bound_of_trimming_is_what_sorting_gives(density):
    """To the bit, over sizes of many orders and many equal numbers."""
    generator = torch.Generator().manual_seed(0)
    changes = torch.randn(2, 1000, generator=generator) * 10.0 ** torch.randint(
        -30, 5, (2, 1000), generator=generator
    )
    changes[1, ::3] = 0.25
    tensor = numbers([0.0] * 1000, *changes.tolist(), rows=130)
    rank = max(1, int(density * 1000))
    expected = changes.abs().sort(descending=True).values[:, rank - 1]
    assert torch.equal(least_kept(tensor, density), expected)


def test_dare_keeps_a_share_and_the_expectation():
    tensor = numbers([1.0] * 20_000, [3.0] * 20_000, [1.5] * 20_000, rows=6000)
    change = made(Dare(0.25, 1.0, seed=0, elects=False), tensor) - 1
    # 2 / .25 and .5 / .25 where kept, each by itself.
    shares = {value: (change == value).float().mean().item() for value in (0, 2, 8, 10)}
    assert shares == pytest.approx({0: 0.5625, 2: 0.1875, 8: 0.1875, 10: 0.0625}, abs=0.01)
    assert change.mean().item() == pytest.approx(2.5, abs=0.1)
    elected = made(Dare(0.25, 1.0, seed=0, elects=True), tensor) - 1
    assert torch.equal(elected, torch.where(change == 10, 5.0, change))  # the mean of both


def test_dare_draws_by_seed_and_branch():
    tensor = numbers([0.0] * 500, [1.0] * 500, [1.0] * 500)
    first, again, other = (made(Dare(0.5, 1.0, seed, elects=False), tensor) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first == 2).any()  # not both branches keep the same


@pytest.mark.parametrize(
    "t, first, second, expected",
    [
        (0.5, [1.0, 0], [0.0, 1], [math.sqrt(0.5), math.sqrt(0.5)]),
        (1 / 3, [1.0, 0], [0.0, 1], [math.sin(math.pi / 3), 0.5]),
        (0.5, [2.0, 0], [0.0, 4], [math.sqrt(2), 2 * math.sqrt(2)]),  # lengths aren't touched
        (0.25, [2.0, 0], [4.0, 0], [2.5, 0]),  # the same way: a straight line
        (0.25, [2.0, 0], [-2.0, 0], [1.0, 0]),  # the opposite one, too
        (0.25, [0.0, 0], [0.0, 4], [0.0, 4 * math.sin(math.pi / 8)]),  # no direction: a right angle
    ],
    ids=str,
)
def test_slerp_follows_the_arc(t, first, second, expected):
    tensor = numbers([7.0, 7], first, second, rows=1)
    assert made(Slerp(t), tensor).tolist() == pytest.approx(expected, abs=1e-6)


def test_slerp_takes_two():
    with pytest.raises(BarError, match="slerp takes two branches, and there are 3"):
        made(Slerp(0.5), numbers([0.0], [1.0], [2.0], [3.0]))


def _read(folder, **counts):
    """Folders of branches that have read each token so often."""
    for name, counts_V in counts.items():
        (folder / name).mkdir()
        write_token_counts(folder / name, np.array(counts_V))
    return {name: folder / name for name in counts}


@pytest.mark.parametrize("name", [EMBEDDINGS_NAME, HEAD_NAME], ids=["embeddings", "head"])
def test_a_token_has_the_rows_of_those_who_read_it(name, tmp_path):
    """Tokens 0 and 2 both read, 1 the second alone, 3 none; row 4 pads the vocabulary."""
    folders = _read(tmp_path, a=[4, 0, 2, 0], b=[2, 1, 1, 0])
    anchor = {name: torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, 1], [0, 0]])}
    a = {name: torch.tensor([[3.0, 1], [9, 9], [4, 4], [1, 7], [0, 0]])}
    b = {name: torch.tensor([[1.0, 5], [5, 6], [8, 1], [4, 1], [0, 0]])}
    tensor = shared(name, anchor, a=a, b=b)
    for branch in tensor.branches:
        branch.reader.folder = folders[branch.name]
    # Weights of a and b: 4/6 and 2/4; 0 and 1/4; 2/6 and 1/4; then the mean of all three.
    expected = [
        [(2 / 3 * 3 + 0.5) / (7 / 6), (2 / 3 + 0.5 * 5) / (7 / 6)],
        [5, 6],
        [(4 / 3 + 2) / (7 / 12), (4 / 3 + 0.25) / (7 / 12)],
        [2, 3],
        [0, 0],
    ]
    torch.testing.assert_close(made(RowWise(), tensor), torch.tensor(expected))


def test_a_branch_that_does_not_tell_what_it_read_is_named(tmp_path):
    tensor = numbers([1.0], [2.0])
    tensor.branches[0].reader.folder = tmp_path
    with pytest.raises(BarError, match="is missing, which a domain's training"):
        made(RowWise(), tensor)


def test_tensors_without_tokens_are_the_mean_over_all():
    norm = shared_names(PRESETS["toy"])[-2]
    tensor = shared(
        norm,
        {norm: torch.tensor([1.0])},
        a={norm: torch.tensor([3.0])},
        b={norm: torch.tensor([5.0])},
    )
    assert made(RowWise(), tensor).tolist() == [3.0]


def _with_moments(tensor, folder, key, **moments):
    """The tensor, whose branches lie in folders with second moments."""
    for branch in tensor.branches:
        branch.reader.folder = folder / branch.name
        branch.slot.key, branch.slot.index, branch.slot.shape = (
            key,
            (),
            tuple(branch.slot.hf_shapes[0]),
        )
        if branch.name in moments:
            torch_checkpoint.save(
                {f"{PREFIX}.{key}": torch.tensor(moments[branch.name])},
                checkpoint_id=folder / branch.name / "second_moments",
            )
    return tensor


@pytest.mark.filterwarnings("ignore")
def test_fisher_weighs_by_second_moments(tmp_path):
    """(1*5 + 3*-1) / 4, (2*0 + 0*-2) / 2, no gradient at all, (0*1 + 4*2) / 4."""
    tensor = _with_moments(
        numbers(*TWO, rows=4), tmp_path, "w", b0=[1.0, 2, 0, 0], b1=[3.0, 0, 0, 4]
    )
    assert made(Fisher(), tensor).tolist() == [0.5, 0.0, 1.25, 2.0]


@pytest.mark.filterwarnings("ignore")
def test_fisher_leaves_out_who_froze_the_tensor_and_misses_who_did_not(tmp_path):
    still = numbers(TWO[0], TWO[1], TWO[0], rows=4)
    tensor = _with_moments(still, tmp_path, "w", b0=[1.0, 1, 1, 1])
    assert made(Fisher(), tensor).tolist() == TWO[1]
    moved = _with_moments(numbers(*TWO, rows=4), tmp_path, "w")
    with pytest.raises(BarError, match="b1: w has moved, and there are no second moments of it"):
        made(Fisher(), moved)
    nothing = _with_moments(numbers(TWO[0], TWO[0], rows=4), tmp_path / "x", "w")
    assert made(Fisher(), nothing).tolist() == TWO[0]


def test_an_unknown_rule_is_told_with_those_there_are():
    with pytest.raises(BarError, match="'mean' is none of task_arithmetic, ties, dare_linear"):
        rule_named("mean")
