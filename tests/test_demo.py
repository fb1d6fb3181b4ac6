"""`make demo`: the whole toy recipe keeps what it promises."""

from pathlib import Path

import pytest

from megatron_bar.analysis.scores import kept_share, load_results
from megatron_bar.cli import main

TOY = Path(__file__).parents[1] / "examples" / "toy.yaml"


@pytest.mark.demo
@pytest.mark.timeout(1800)
def test_every_branch_learns_and_the_routed_model_keeps(tmp_path):
    assert main(["run", str(TOY), f"runs={tmp_path}"]) == 0
    results = load_results(tmp_path / "toy")
    scores = {
        name: {task: r["score"] for task, r in result["tasks"].items()}
        for name, result in results.items()
    }
    kept = kept_share(results)
    print(scores, kept)
    # What the recipe promises, and for the routed model some room for another CPU's rounding.
    for domain, at_least in {"math": 0.5, "code": 0.8, "tool_use": 0.5, "safety": 0.9}.items():
        assert scores["anchor"][domain] <= 0.1
        assert scores[domain][domain] >= at_least
        assert scores[domain]["general"] >= 0.85 * scores["anchor"]["general"]
        assert kept[domain] >= 0.75
    assert scores["routed"]["general"] >= 0.85 * scores["anchor"]["general"]
