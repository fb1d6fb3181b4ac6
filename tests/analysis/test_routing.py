"""Router statistics, said in words."""

from __future__ import annotations

from megatron_bar.analysis.routing import describe_routing


def test_words():
    experts = ["anchor", "math", "code", "poetry"]
    lines = describe_routing(
        {
            "math": [[0.2, 0.7, 0.09, 0.01], [0.1, 0.8, 0.09, 0.01]],
            "code": [[0.5, 0.3, 0.19, 0.01]] * 2,
            "general": [[0.29, 0.3, 0.4, 0.01], [0.33, 0.3, 0.2, 0.01]],
        },
        experts,
    )
    assert lines == [
        "math leans on its own expert (75%), then anchor (15%).",
        "code leans on anchor (50%), then math (30%); its own expert has 19%.",
        "general leans on no expert: anchor has most, with 31%.",
        "Expert poetry is dead: no layer gives it 2% of any task.",
    ]


def test_an_expert_used_in_one_layer_is_not_dead():
    routing = {"math": [[0.99, 0.01], [0.97, 0.03]]}
    assert describe_routing(routing, ["anchor", "math"]) == [
        "math leans on anchor (98%), then math (2%).",
        "Expert anchor dominates: every task gives it 98% or more, which leaves little to the "
        "others.",
    ]


def test_no_routing_no_words():
    assert describe_routing({}, ["anchor", "math"]) == []
