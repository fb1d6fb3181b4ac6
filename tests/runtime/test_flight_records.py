"""Who is behind, by records as torch's flight recorder writes them for NCCL (made up here)."""

from __future__ import annotations

import pickle

import pytest
import torch

from megatron_bar.runtime.flight_records import behind_in_group, read_record, write_record

_GROUPS = {"0": "default_pg", "7": "DATA_PARALLEL_GROUP"}


def _record(*asked: tuple[str, str, str], first: int = 0) -> bytes:
    """Collectives as (group, kind, state), in order; those before `first` were written over."""
    numbers = dict.fromkeys(_GROUPS, 0)
    entries = []
    for record_id, (group, kind, state) in enumerate(asked):
        is_p2p = kind.startswith("nccl:recv")
        numbers[group] += not is_p2p
        entries.append(
            {
                "record_id": record_id,
                "pg_id": int(group),
                "process_group": (group, _GROUPS[group]),
                "collective_seq_id": numbers[group],
                "p2p_seq_id": int(is_p2p),
                "op_id": record_id + 1,
                "profiling_name": kind,
                "state": state,
                "retired": state == "completed",
                "is_p2p": is_p2p,
                "frames": [],
            }
        )
    config = {
        name: {"name": name, "desc": purpose, "ranks": "[0, 1]"}
        for name, purpose in _GROUPS.items()
    }
    told = {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": entries[first:]}
    return pickle.dumps(told, protocol=2)


_REDUCED = ("7", "nccl:all_reduce", "completed")
_REDUCES = ("7", "nccl:all_reduce", "started")
_GATHERS = ("7", "nccl:_all_gather_base", "scheduled")
_RECEIVES = ("0", "nccl:recv 1<-0", "started")


@pytest.mark.parametrize(
    "records, named",
    [
        (
            # A rank asks for more before the first is done.
            [[_REDUCED, _REDUCES, _GATHERS], [_REDUCED], [_REDUCED, _REDUCES, _GATHERS]],
            {
                1: "the last collective of DATA_PARALLEL_GROUP that it came to is number 1, "
                "nccl:all_reduce, and others wait in number 2, nccl:all_reduce"
            },
        ),
        (
            [[_REDUCES], []],
            {
                1: "the last collective of DATA_PARALLEL_GROUP that it came to is none, and "
                "others wait in number 1, nccl:all_reduce"
            },
        ),
        ([[_REDUCED, _REDUCES], [_REDUCED, _RECEIVES]], {}),  # for each other
        ([[_REDUCED, _REDUCES], [_REDUCED, _REDUCES]], {}),
        ([[_REDUCED], [_REDUCED]], {}),
    ],
    ids=["behind", "never came", "held up, too", "equally far", "none waits"],
)
def test_the_rank_that_has_not_come_to_where_others_wait_is_named(records, named):
    ranks = {rank: read_record(_record(*asked)) for rank, asked in enumerate(records)}
    assert behind_in_group(ranks) == named


def test_a_group_whose_entries_were_written_over_is_not_at_its_start():
    later = [("0", "nccl:broadcast", "completed")] * 3
    ranks = {
        0: read_record(_record(*later, _REDUCES)),
        1: read_record(_record(_REDUCED, *later, first=1)),
    }
    assert set(ranks[1]) == {"0"} and behind_in_group(ranks) == {}


def test_a_recorder_that_does_not_answer_holds_nobody_up(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "nccl")
    for fault in (TypeError, OSError):

        def fail(fault=fault) -> bytes:
            raise fault

        monkeypatch.setattr(torch._C._distributed_c10d, "_dump_nccl_trace", fail, raising=False)
        assert write_record(0, 5.0) is None
