"""One panel of a picture, as SVG to put into a page.

A panel is drawn for the width of a phone; the page sets them side by side where there is room, so
no text ever shrinks. Text stays text. Colours are the page's own, by name, so that a panel follows
it from light to dark; those that tell things apart are near Okabe and Ito's, which colour-blind
readers can tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins while matplotlib draws; the page's colours take their place.
INK, MUTED, LINE, INVERSE = "#010101", "#020202", "#030303", "#040404"
BASE, BRANCH, MERGE, ROUTE, SHARE = "#050505", "#060606", "#070707", "#080808", "#090909"
_NAMES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    INVERSE: "inverse",
    BASE: "base",
    BRANCH: "branch",
    MERGE: "merge",
    ROUTE: "route",
    SHARE: "share",
}
_WIDTH = 3.6  # inches of 72 points; an SVG point is 4/3 CSS pixels
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.prop_cycle": cycler(color=[BRANCH]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def svg_panel(draw: Callable[[Axes], None], height: float, label: str) -> str:
    """One panel, `height` inches high, without anything that another part of a page could meet.

    Matplotlib's own file has ids that repeat from picture to picture, a style sheet that would hold
    for the whole page, metadata and namespaces that an inline SVG needs none of.
    """
    style: Any = {**_STYLE, "svg.hashsalt": label}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    svg = file.getvalue()
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'xlink:href="', 'href="', re.sub(r' xmlns(:xlink)?="[^"]*"', "", body))
    body = re.sub(r"'?DejaVu Sans'?", "system-ui, sans-serif", body)
    for colour, name in _NAMES.items():
        body = body.replace(f": {colour}", f": var(--{name})")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None, "matplotlib gives each picture one"
    inner = body[body.index(">") + 1 :]
    inner = re.sub(r"\s*\n\s*", "\n", inner).strip()
    return (
        f'<svg class="panel" role="img" aria-label="{_escape(label)}" {view[0]} width="100%" '
        f'stroke-linejoin="round" stroke-linecap="butt">\n{inner}\n'
    )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
