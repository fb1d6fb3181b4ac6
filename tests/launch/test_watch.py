"""`megatron-bar watch`: a page that tells where a run stands, and ends with the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.launch import watch
from megatron_bar.stages.at_work import at_work, begun_at
from tests.analysis.browser import Page, check_shown, in_a_browser

pytestmark = pytest.mark.slow

SITE = {"gpu_hour_price": 2.5, "currency": "EUR"}


def page_of(run: Path) -> str:
    return (run / watch.PAGE).read_text(encoding="utf-8")


def undo(run: Path, stage: str) -> None:
    """As if `stage` were in the midst of its work: three of six steps, 40 s to go."""
    (run / stage / "stage.json").unlink()
    log = run / "logs" / f"{stage.replace('/', '-')}.txt"
    log.write_text(f"{stage}: 3/6, 0.5/s, 40 s left \n")


def test_of_a_finished_run_it_ends_at_once(run, tmp_path, capsys):
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE))
    assert main(["watch", str(run), "--site", str(tmp_path / "site.yaml")]) == 0
    assert "16 of 16 stages are done." in capsys.readouterr().out
    page = Page(page_of(run))
    assert page.sections == ["flow", "now", "curves"]
    assert "16 / 16stages done" in page.text and "EUR" in page.text and "left, by" not in page.text
    metas = [attrs for tag, attrs in page.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert not [attrs for attrs in metas if attrs.get("http-equiv") == "refresh"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img"}
    assert "http:" not in page_of(run) and "https:" not in page_of(run)


def test_it_follows_a_run_to_its_end(run, monkeypatch, capsys):
    finished = (run / "routed" / "stage.json").read_text()
    undo(run, "routed")
    seen = []

    def then(seconds: float) -> None:
        seen.append((seconds, page_of(run)))
        (run / "routed" / "stage.json").write_text(finished)

    monkeypatch.setattr("time.sleep", then)
    with at_work(run, "routed"):
        assert main(["watch", str(run), "--every", "7"]) == 0
    ((seconds, html),) = seen
    page = Page(html)
    assert seconds == 7 and ("meta", {"http-equiv": "refresh", "content": "7"}) in page.tags
    assert "running: routed" in page.text and "routed 3/6" in page.text
    assert (
        "div",
        {"class": "step running", "style": "--column: 1", "title": "routed"},
    ) in page.tags
    assert "≥" in page.text and "left, by" in page.text
    assert "16 of 16 stages are done" in page_of(run) and 'http-equiv="refresh' not in page_of(run)
    assert not list(run.glob("*.tmp*"))


def test_a_run_that_was_cut_short_is_not_waited_for(run, monkeypatch, capsys):
    undo(run, "routed")
    monkeypatch.setattr(watch, "_QUIET_SECONDS", 0.0)
    assert main(["watch", str(run)]) == 0
    told = capsys.readouterr().out
    assert "stopped before the end: routed; nothing is at work" in told
    assert main(["status", str(run)]) == 0
    assert "ended, not done" in capsys.readouterr().out


def test_what_is_left_goes_along_the_graph(run):
    """A running stage tells itself, one that waits takes what others of its kind took."""
    undo(run, "math/sft")
    shutil.rmtree(run / "tool_use" / "sft")
    with at_work(run, "math/sft"):
        seen = watch.look(run)
    by_name = {one.stage.name: one for one in seen}
    assert 0 <= by_name["math/sft"].seconds < 60
    left, unknown = watch.time_left(seen)
    assert 39 < by_name["math/sft"].status.seconds_left <= 40 <= left + 1
    assert "tool_use/sft" in unknown and "merged" in unknown  # nothing of their kind has run
    done = [one for one in seen if one.stage.ON_GPU and one.status.phase is watch.Phase.DONE]
    hours = sum(one.seconds * one.processes for one in done) / 3600
    assert watch.device_hours(seen) == pytest.approx(
        hours + by_name["math/sft"].seconds / 3600, abs=1e-9
    )


def test_the_sign_of_work_goes_with_who_gave_it(tmp_path):
    assert begun_at(tmp_path, "a/b") is None
    with at_work(tmp_path, "a/b"):
        assert begun_at(tmp_path, "a/b") is not None and begun_at(tmp_path, "a") is None
    assert begun_at(tmp_path, "a/b") is None


@pytest.mark.parametrize(
    "words, told",
    [
        (["nowhere"], "nowhere is not a run's folder: it has no recipe.yaml"),
        (["nowhere", "--every", "0"], "--every 0: give at least 1"),
    ],
)
def test_what_is_refused(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *words]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_price_below_nothing_is_refused(run, tmp_path, capsys):
    (tmp_path / "site.yaml").write_text("gpu_hour_price: -1\n")
    assert main(["watch", str(run), "--once", "--site", str(tmp_path / "site.yaml")]) == 1
    assert "gpu_hour_price -1.0 is not 0 or more" in capsys.readouterr().err


@in_a_browser
@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1280, "light")])
def test_a_browser_shows_it(run, tmp_path, width, scheme):
    undo(run, "routed")
    with at_work(run, "routed"):
        assert main(["watch", str(run), "--once", "--out", str(tmp_path / "now.html")]) == 0
    check_shown((tmp_path / "now.html").read_text(encoding="utf-8"), tmp_path, width, scheme)
