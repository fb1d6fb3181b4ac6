"""Pages as a reader gets them: as a parser sees them, and a browser where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed")


class Page(HTMLParser):
    """Tags with their attributes, and the text a reader sees; checks that tags close in order."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    @property
    def sections(self) -> list[str]:
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


def check_shown(html: str, folder: Path, width: int, scheme: str) -> None:
    """No part but the tables, which scroll, is wider than the screen; colours follow the reader.

    `folder` gets the picture, page.png. `html` is a page of ours, long enough for 2400 pixels.
    """
    if scheme == "dark":
        html = html.replace("@media (prefers-color-scheme: dark)", "@media all")
    page = json.dumps(html).replace("</", "<\\/")
    (folder / "probe.html").write_text(
        f'<!doctype html><body style="margin:0"><iframe id=f style="border:0;width:{width}px;'
        'height:2400px"></iframe><script>const f=document.getElementById("f");f.onload=()=>{'
        "const d=f.contentDocument.documentElement;"
        "document.body.dataset.over=d.scrollWidth-d.clientWidth};"
        f"f.srcdoc={page}</script>",
        encoding="utf-8",
    )
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1280,2400",
        f"--screenshot={folder / 'page.png'}",
        "--dump-dom",
        str(folder / "probe.html"),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-over="0"' in dom
    picture = image.imread(folder / "page.png")[:, :width, :3]
    assert picture.shape[:2] == (2400, width)
    corner = picture[2, 2].mean()
    assert corner > 0.9 if scheme == "light" else corner < 0.15
    # There is something on it, from top to bottom and up to the right edge of the sections.
    for part in (picture[:800], picture[800:1600], picture[1600:], picture[:, width // 2 :]):
        assert (abs(part - corner) > 0.3).any(axis=-1).mean() > 0.005
