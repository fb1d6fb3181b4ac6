"""The report's pictures by themselves: how many panels each has, and what stands in them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from megatron_bar.analysis.plots import routing_heatmap, scores_chart, training_curves
from megatron_bar.analysis.scores import load_results
from tests.analysis.conftest import EXPERTS, routing, write_training


def panels(svg: str) -> list[str]:
    """The text of each panel; fails if one isn't well-formed XML."""
    found = re.findall(r"<svg.*?</svg>", svg, flags=re.S)
    assert "".join(re.sub(r"\s+", "", p) for p in found) == re.sub(r"\s+", "", svg)
    return [" ".join(ElementTree.fromstring(panel).itertext()) for panel in found]


def test_loss_panels(run):
    found = panels(training_curves(run))
    assert len(found) == 8  # base, 3 x (mid-training, SFT), routed
    assert [text.split()[-1] for text in found][:2] == ["base", "tool_use/midtrain"]
    (run / "math" / "sft" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": Infinity}\n'
    )
    (run / "code" / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    write_training(run, "routed", "route", 2, 1.0, 1.0)
    assert len(panels(training_curves(run))) == 8
    assert training_curves(run / "nowhere") == ""


def test_heatmap_panels():
    found = panels(routing_heatmap(routing(0.5, EXPERTS), EXPERTS))
    assert len(found) == 5  # 4 tasks and the scale
    assert "anchor" in found[0] and "tool_use" in found[0] and "0.50" in found[0]
    large = {"math": [[0.25] * 4] * 32}
    assert "0.25" not in panels(routing_heatmap(large, EXPERTS))[0]
    assert routing_heatmap({}, []) == ""


def test_score_panels(run):
    found = panels(scores_chart(load_results(run)))
    assert len(found) == 4
    assert all(word in found[1] for word in ("base (anchor)", "branch", "merged", "0.73", "0.71"))
    assert "branch code" in found[3] and "branch code" not in found[1]
    assert scores_chart({"anchor": {"tasks": {}}}) == ""


def test_dollars_and_brackets_in_names_are_drawn_as_they_are():
    svg = routing_heatmap({"a$b$ <&>": [[0.5, 0.5]]}, ["$x^2$", "y<z"])
    assert "a$b$ <&>" in panels(svg)[0] and "$x^2$" in panels(svg)[0]
