"""What the documentation quotes exists: commands, messages, files, code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree

import pytest

from megatron_bar.stages.rlvr import RLVR_GROUPS
from megatron_bar.stages.route import ROUTE_GROUPS
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = sorted((DOCS / "results").glob("[a-z]*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "slurm" / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")


def _texts(path: Path) -> Iterator[str]:
    """The strings in a Python file, with ... for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "..." for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _messages() -> list[str]:
    page = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Everything the code may say, the job script included."""
    code = [text for path in sorted((ROOT / "megatron_bar").rglob("*.py")) for text in _texts(path)]
    script = (ROOT / "slurm" / "stage.sbatch.j2").read_text()
    return [*code, re.sub(r"\$\w+|{{.*?}}", "...", script)]


@pytest.mark.parametrize("message", _messages())
def test_a_quoted_message_is_one_of_ours(message, said):
    pattern = re.compile(".*?".join(map(re.escape, message.split("..."))))
    assert any(pattern.search(text) for text in said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in _LINK.findall(FENCE.sub("", page.read_text())):
        path = page.parent / target if target else page
        assert path.is_file(), target
        assert not anchor or anchor in _anchors(path), f"{target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("index", "pages"),
    [
        (DOCS, "[a-z]*.md"),
        (DOCS, "how-to/*.md"),
        (DOCS / "results", "[a-z]*.md"),
    ],
    ids=["manual", "how-to", "results"],
)
def test_an_index_names_every_page(index, pages):
    named = {target for target, _ in _LINK.findall((index / "README.md").read_text())}
    assert {path.relative_to(index).as_posix() for path in index.glob(pages)} <= named


def test_the_site_has_every_page():
    """What mkdocs would refuse, without mkdocs; and all that links lead to is beside the pages."""
    config = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", config, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT)) for page in PAGES)
    for link in (ROOT / "site").iterdir():
        assert link.resolve() == ROOT / link.name
    for page in PAGES:
        for target, _ in _LINK.findall(FENCE.sub("", page.read_text())):
            place = (page.parent / target).resolve().relative_to(ROOT) if target else page
            assert (ROOT / "site" / place).exists(), f"{page}: {target}"


def test_the_stages_are_drawn_as_they_train():
    """Row by row what docs/figures/what-trains.svg says, by the groups that stages open."""
    svg = ElementTree.parse(DOCS / "figures" / "what-trains.svg")
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    first, *rows = re.split(r",(?=anchor: |expert: |embeddings|attention)", ",".join(texts))
    assert first == "mid-training,SFT,RLVR,merge,route"
    opened = [MIDTRAIN_GROUPS, SFT_GROUPS, RLVR_GROUPS, None, ROUTE_GROUPS]
    for row, drawn in zip(
        [
            ["expert.0"],
            ["router.0"],
            ["expert.1"],
            ["router.1"],
            ["embeddings", "head", "final_norm"],
            ["attention", "block_norms"],
        ],
        rows,
        strict=True,
    ):
        shared = "." not in row[0]
        assert drawn.split(",")[-5:] == [
            ("mean" if shared else "frozen")
            if groups is None
            else "trains"
            if any(fnmatch(row[0], group) for group in groups)
            else "frozen"
            for groups in opened
        ]
        for groups in opened:
            assert (
                groups is None
                or len({any(fnmatch(name, group) for group in groups) for name in row}) == 1
            )


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_results_tell_how_they_were_made(page):
    told = re.findall(r"^\| (command|machine|state) \| .+ \|$", page.read_text(), re.MULTILINE)
    assert told and told == ["command", "machine", "state"] * (len(told) // 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_benchmarks_exist(page):
    for name in re.findall(r"python -m benchmarks\.(\w+)", page.read_text()):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name


def test_the_house_is_drawn_as_it_stands():
    (listed,) = [
        block
        for _, block in FENCE.findall((DOCS / "architecture.md").read_text())
        if block.startswith("megatron_bar/\n")
    ]
    drawn = [
        text.text
        for text in ElementTree.parse(DOCS / "figures" / "house.svg").iter(
            "{http://www.w3.org/2000/svg}text"
        )
    ]
    top_down = FLOORS[::-1]
    assert re.findall(r"^  (\w+)/ ", listed, re.MULTILINE) == top_down
    assert [text for text in drawn if text in FLOORS] == top_down


@pytest.mark.parametrize(
    "module",
    sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"),
)
def test_a_benchmark_can_be_loaded(module):
    """No test runs them, and a name that they import may change."""
    importlib.import_module(f"benchmarks.{module}")
