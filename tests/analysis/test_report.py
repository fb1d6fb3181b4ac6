"""The report: whole, self-contained, escaped, and written for runs that lack something, too."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from megatron_bar.analysis.flow import flow_of
from megatron_bar.analysis.formats import duration, number
from megatron_bar.analysis.plots import routing_heatmap
from megatron_bar.analysis.report import write_report
from megatron_bar.analysis.runs import read_stages
from megatron_bar.analysis.scores import MISSING
from megatron_bar.analysis.trained import trained_stages
from megatron_bar.cli import main
from megatron_bar.methods import last_model
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.registry import LABELS
from tests.analysis.browser import Page, check_shown, in_a_browser
from tests.analysis.conftest import (
    ANCHOR_DIGEST,
    ATTACK,
    DOMAINS,
    EXPERTS,
    MODEL,
    VERSIONS,
    build_run,
    write,
    write_results,
    write_training,
)

SECTIONS = [
    "flow",
    "scores",
    "made",
    "router",
    "curves",
    "trained",
    "anchor",
    "averaging",
    "samples",
    "repeat",
]


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    """The report of the whole run, for tests that only read it."""
    run = build_run(tmp_path_factory.mktemp("runs") / "toy")
    write_report(run, run / "report.html", last_model(run), LABELS)
    return (run / "report.html").read_text(encoding="utf-8")


def test_every_section_with_its_numbers(html):
    page = Page(html)
    assert page.open == []
    assert page.sections == SECTIONS
    for text in (
        "One model keeps 96% of what its 3 branches reached on their own domains, from 92% "
        "(tool_use) to 100% (code). On general it scores 0.94; the base scored 0.95.",
        "finished 2026-11-22 03:21 UTC",
        f"0.730.64{MISSING}0.81",  # score and interval
        "100 items",
        "routed / branch",
        "math leans on its own expert (70%)",
        "routed \N{MINUS SIGN} branch",
        "(Wilson)",
        "frozen",
        "394 k",
        "330 k",
        "2000 math, 600 general",
        "anchor FFN",
        "SFT33.0 s · loss 0.120",
        "mid-training",
        "evaluate25.2 s · 6 models",
        "pip install 'megatron-core==0.16.1' 'torch==2.9.1'",
        "megatron-bar report",
        ANCHOR_DIGEST[:10],
        "lm_head.weight",
        "15.3%",
        "Tom has 2 cups and finds 5.",
        "megatron-bar run recipe.yaml",
        "name: toy",
        *VERSIONS.values(),
    ):
        assert text in page.text, text
    assert page.text.count("✓ same") == 11  # 3 x (branch, mid-training, SFT), merge, route
    assert "decoder.layers.1." not in page.text  # layer 2 is the fifth and last
    titles = re.findall(r">([^<>]+)</text>", html)
    for title in ("base", "math/midtrain", "code/sft", "routed", "loss", "step", "layer"):
        assert title in titles


def test_loads_nothing(html):
    for tag, attrs in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "object", "img")
        assert not any(key.startswith("on") for key in attrs)
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert attrs.get(key, "#").startswith("#")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


@pytest.mark.slow
def test_escapes_everything(run):
    results = json.loads((run / "evaluate" / "math" / "results.json").read_text())
    results["tasks"]["math"]["samples"][0]["prompt"] = '"><img src=x onerror=alert(1)>'
    (run / "evaluate" / "math" / "results.json").write_text(json.dumps(results))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("name: toy", 'name: "<b>toy</b>"'))
    write_report(run, run / "report.html", last_model(run), LABELS)
    html = (run / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert ATTACK not in html and "<b>toy" not in html and "<img" not in html
    assert ATTACK + " & 3" in page.text and "<img src=x" in page.text


def test_ids_are_unique(html):
    ids = [attrs["id"] for _, attrs in Page(html).tags if "id" in attrs]
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', html))
    assert len(set(ids)) == len(ids)
    assert used and used <= set(ids)


@pytest.mark.slow
def test_same_run_same_page(run, html):
    write_report(run, run / "report.html", last_model(run), LABELS)
    assert (run / "report.html").read_text(encoding="utf-8") == html
    assert not list(run.glob(".*partial*"))


@pytest.mark.slow
def test_a_changed_anchor_is_called_so(run):
    path = run / "math" / "sft" / "stage.json"
    stage = json.loads(path.read_text())
    stage["anchor_digest"]["after"] = "0" * 32
    path.write_text(json.dumps(stage))
    write_report(run, run / "report.html", last_model(run), LABELS)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("changed") == 2 and "unchanged" not in page.text


def test_before_the_merge(run):
    for name in ("merged", "routed", "hf", "evaluate/merged", "evaluate/routed"):
        shutil.rmtree(run / name)
    write_report(run, run / "report.html", last_model(run), LABELS)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.sections == [s for s in SECTIONS if s not in ("made", "router", "averaging")]
    assert "no routed model to compare with its branches yet" in page.text
    assert "base (anchor), branch tool_use, branch math, branch code." in page.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, kept",
    [
        (
            "dense_merge",
            [
                "One model keeps 71% of what its 3 branches reached on their own domains, from 60% "
                "(tool_use) to 82% (code). On general it scores 0.80; the base scored 0.95.",
                "base \N{RIGHTWARDS ARROW} merged",
                "compares the merged model",
                "merged / branch 60%",
            ],
        ),
        (
            "retrain",
            [
                "One model for all 3 domains scores 0.69 on them, from 0.46 (tool_use) to 0.90 "
                "(code). On general it scores 0.94",
                "base \N{RIGHTWARDS ARROW} all domains",
            ],
        ),
    ],
)
def test_a_method_that_does_not_route_is_reported_by_the_model_it_makes(run, method, kept):
    (run / "evaluate" / "routed").rename(run / "evaluate" / "all")
    if method == "retrain":
        for domain in DOMAINS:
            shutil.rmtree(run / "evaluate" / domain)
            shutil.rmtree(run / domain)
    else:
        shutil.rmtree(run / "evaluate" / "all")
    shutil.rmtree(run / "routed")
    with open(run / "recipe.yaml", "a") as recipe:
        recipe.write(f"method: {method}\n")
    write_report(run, run / "report.html", last_model(run), LABELS)
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    for words in kept:
        assert words in text, words
    assert "routed model" not in text and "yet" not in text
    assert ("know nothing of each other" in text) == (method == "dense_merge")


def test_evaluations_alone(tmp_path):
    write_results(tmp_path, "anchor", {})
    (tmp_path / "evaluate" / "anchor" / "stage.json").unlink()
    write_report(tmp_path, tmp_path / "report.html", "routed", LABELS)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.sections == ["repeat"] and tmp_path.name in page.text


def test_nothing_evaluated(run):
    shutil.rmtree(run / "evaluate")
    write_report(run, run / "report.html", last_model(run), LABELS)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.sections == [s for s in SECTIONS if s not in ("scores", "router", "samples")]
    assert "No model has been evaluated yet." in page.text


def test_models_that_are_evaluated_are_one_step_at_work_while_one_is():
    def evaluations(*states: str) -> str:
        stages = [
            {"stage": f"evaluate/{number}", "kind": "evaluate", "seconds": 1.0, "state": state}
            for number, state in enumerate(states)
        ]
        return flow_of(stages, LABELS).ends[-1].state

    assert evaluations("done", "waiting", "running", "running") == "running"
    assert evaluations("done", "waiting") == "waiting" and evaluations("done") == "done"


def test_nothing_at_all(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds nothing to report" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").is_file() and not (run / "report.html").exists()


def test_what_a_stage_trained(run):
    columns, rows = trained_stages(run, read_stages(run))
    by_stage = {row.stage: dict(zip(columns, row.opened)) for row in rows}
    ffn = 4 * 3 * 128 * 256
    assert by_stage["base"]["FFN"] == ffn and by_stage["base"]["anchor FFN"] is None
    assert by_stage["math/sft"] == {
        "embeddings": 512 * 128,
        "attention": 0,
        "block norms": 0,
        "final norm": 128,
        "head": 512 * 128,
        "router": 4 * 128,
        "anchor FFN": 0,
        "FFN": ffn,
    }
    assert by_stage["routed"]["router"] == 4 * 4 * 128 and by_stage["routed"]["FFN"] == 0
    shutil.rmtree(run / "math" / "sft" / "checkpoint")  # to save space; the rest is still told
    _, rows = trained_stages(run, read_stages(run))
    assert [row.trainable for row in rows if row.stage == "math/sft"] == [
        sum(size or 0 for size in by_stage["math/sft"].values())
    ]


@pytest.mark.slow
def test_the_model_for_who_has_to_decide_about_it(run):
    """How much bigger and slower than the base, out of the shapes; where it lies; what it took."""
    with open(run / "recipe.yaml", "a") as recipe:
        recipe.write("anchor: org/base\n")
    write_report(run, run / "report.html", last_model(run), LABELS)
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    dense = 2 * 512 * 128 + 128 + 4 * (4 * 128 * 128 + 4 * 128 + 3 * 128 * 256)
    mixture = dense + 4 * (3 * 3 * 128 * 256 + 4 * 128)
    assert f"{number(mixture)} parameters, {mixture / dense:.1f} times those" in text
    looked_up = 512 * 128
    assert f"{(mixture - looked_up) / (dense - looked_up):.1f} times the operations" in text
    experts = MODEL.with_experts(len(EXPERTS)).all_expert_names
    assert "org/base (anchor)" in text and ", ".join(experts) in text
    assert "hf/model of the run's folder" in text and "in 8 stages" in text


def test_tokens_of_reinforcement_learning_are_those_it_generated(run):
    write_training(run, "math/rlvr", "rlvr", 2, 0.1, 0.5)
    path = run / "math" / "rlvr" / "stage.json"
    stage = json.loads(path.read_text())
    del stage["tokens"]
    settings = {"training": {"prompts_per_step": 4, "samples_per_prompt": 8}}
    path.write_text(json.dumps(stage | {"settings": settings}))
    (run / "math" / "rlvr" / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "reward": 0.5, "response_length": length}) + "\n"
            for step, length in ((1, 10.0), (2, 12.5))
        )
    )
    rows = {row.stage: row for row in trained_stages(run, read_stages(run))[1]}
    assert rows["math/rlvr"].tokens == 22.5 * 32 and rows["math/rlvr"].tokens_per_second is None
    assert (
        rows["math/rlvr"].ranks_waiting_share is None
        and rows["math/sft"].ranks_waiting_share == 0.06
    )
    assert rows["math/sft"].tokens == 300 * 1100 and rows["math/sft"].tokens_per_second == 9000


@pytest.mark.slow
def test_sections_that_other_commands_add(run):
    write(
        run / "sections" / "upgrade.json",
        {
            "title": "Upgrade",
            "after": "scores",
            "words": ["code <b>rose</b>"],
            "tables": [{"columns": ["domain", "before", "tokens"], "rows": [["code", 0.5, 12]]}],
            "pictures": [routing_heatmap({"law": [[0.5, 0.5]]}, ["a", "b"])],
            "page": "tokens.html",
        },
    )
    write(run / "sections" / "more.json", {"title": "More"})
    write_report(run, run / "report.html", last_model(run), LABELS)
    html = (run / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.sections == ["flow", "scores", "upgrade", *SECTIONS[2:-1], "more", "repeat"]
    assert "code <b>rose</b>" in page.text and "code0.5012" in page.text
    assert ("a", {"href": "tokens.html"}) in page.tags and html.count("<svg") > 20
    write(run / "sections" / "more.json", {"title": "More", "tables": [{"rows": []}]})
    with pytest.raises(BarError, match="is no section of a report"):
        write_report(run, run / "report.html", last_model(run), LABELS)


@pytest.mark.slow
def test_benchmarks(run):
    write(
        run / "suites" / "paper" / "scores.json",
        {
            "suite": "paper",
            "overall": 0.5,
            "complete": False,
            "limit": 20,
            "categories": {
                "math": {
                    "score": 0.514,
                    "complete": False,
                    "benchmarks": {"GSM8K": {"score": 0.514, "items": 20}},
                    "missing": {"Minerva MATH": "needs antlr"},
                }
            },
        },
    )
    write_report(run, run / "report.html", last_model(run), LABELS)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.sections[:3] == ["flow", "scores", "suites"]
    for text in ("GSM8K51.420", "1 of 2 benchmarks", "needs antlr", "first 20 items"):
        assert text in page.text


@pytest.mark.slow
def test_sampled_answers_are_called_so(run):
    for name in ("math", "routed"):
        path = run / "evaluate" / name / "results.json"
        results = json.loads(path.read_text())
        task = results["tasks"]["math"]
        task |= {"items": [0.25 + 0.5 * item for item in task["items"]], "score": 0.5, "cut": 0.31}
        path.write_text(json.dumps(results | {"temperature": 0.7, "samples": 4}))
    write_report(run, run / "report.html", last_model(run), LABELS)
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    assert "Mean of 4 answers to each item, drawn at temperature 0.7." in text
    assert "bootstrap over items" in text and "31% cut" in text


def test_pictures_follow_the_page_from_light_to_dark(html):
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert not re.search(r"#[0-9a-f]{6}", drawn.replace("#ffffff", ""))
    used = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert {"ink", "muted", "line", "branch", "share"} <= used
    dark = html[html.index("prefers-color-scheme: dark") :]
    for name in used:
        assert f"--{name}: " in dark


@pytest.mark.slow
def test_a_broken_report_leaves_the_old_one(run, monkeypatch):
    (run / "report.html").write_text("the old one")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(run, run / "report.html", last_model(run), LABELS)
    assert (run / "report.html").read_text() == "the old one"


def test_numbers_and_durations():
    assert [number(n) for n in (7, 999, 1000, 394_240, 999_999, 1_234_567, 7_298_011_136)] == [
        "7",
        "999",
        "1 k",
        "394 k",
        "1 M",
        "1.23 M",
        "7.3 B",
    ]
    assert [duration(s) for s in (0.44, 59.99, 103.2, 3599.7, 7384)] == [
        "0.4 s",
        "1 min 0 s",
        "1 min 43 s",
        "1 h 0 min",
        "2 h 3 min",
    ]


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(html, tmp_path, width, scheme):
    check_shown(html, tmp_path, width, scheme)
