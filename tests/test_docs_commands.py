"""What the documentation tells to type: some test types it, or the line says that it isn't run."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import megatron_bar
from megatron_bar.cli import api_reference, main, reference
from megatron_bar.cli.parser import build_parser
from megatron_bar.recipe.training import Source
from tests.test_docs import DOCS, FENCE, PAGES, RESULTS, ROOT

# A call of the command, alone or behind another program.
_CALL = re.compile(r"(?:^|^\$ |[;&|] )(megatron-bar .*)")
# One of another program that people type, and the tests that start those which aren't `not run`.
_OTHER = re.compile(
    r"^(?:\$ |RUN )?(?:[A-Z_]+=\S* )*(?:\S+/)?(pip|python3?|sbatch|srun|torchrun|vllm) "
)
_STARTED = {
    "pip": "test_wheel.py",
    "sbatch": "slurm/test_cluster.py",
    "torchrun": "launch/test_run.py",
}
_OPTION = re.compile(r"--[a-z][a-z-]*")
_INLINE = re.compile(r"`(megatron-bar [a-z][^`]*)`")


def _lines(page: Path) -> Iterator[str]:
    """The lines in the blocks of a page; one that is broken by a backslash is whole."""
    for _, block in FENCE.findall(page.read_text()):
        yield from block.replace("\\\n", " ").splitlines()


def _whole(page: Path) -> Iterator[str]:
    """The lines in the blocks of a page that call the command."""
    for line in _lines(page):
        yield from (found[1] for found in _CALL.finditer(line))


def _mentioned(page: Path) -> Iterator[str]:
    """What sentences of a page say of the command, often without all that it needs."""
    for found in _INLINE.findall(FENCE.sub("", page.read_text())):
        yield " ".join(found.split())


@pytest.fixture(scope="module")
def typed() -> dict[str, set[str]]:
    """Each command that tests call, with the options that the same files name."""
    (action,) = [
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        texts = [
            node.value
            for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        options = {option for text in texts for option in _OPTION.findall(text)}
        groups = [
            node.args if isinstance(node, ast.Call) else node.elts
            for node in nodes
            if isinstance(node, ast.Call | ast.List | ast.Tuple)
        ]
        for group in groups:
            for node in group:
                if isinstance(node, ast.Constant) and node.value in action.choices:
                    found.setdefault(node.value, set()).update(options)
        for text in texts:  # programs that a test starts
            for name in re.findall(r"main\(\[[\"'](\w+)", text):
                found.setdefault(name, set()).update(options)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_commands_are_understood(page):
    parser = build_parser()
    for line in _whole(page):
        _, rest = parser.parse_known_args(shlex.split(line, comments=True)[1:])
        assert not [word for word in rest if word.startswith("-")], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_test_types_what_is_quoted(page, typed):
    for line in (*_whole(page), *_mentioned(page)):
        words = shlex.split(line, comments=True)[1:]
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if "not run" not in line and words[0].islower():  # COMMAND stands for any
            assert words[0] in typed, f"no test runs it, and it isn't marked '# not run': {line}"
            assert options - {"--help"} <= typed[words[0]], f"{line}: not all options are tested"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in RESULTS],  # these tell how they were run, by hand
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_other_programs_are_started_by_a_test_or_marked(page):
    for line in _lines(page):
        if (found := _OTHER.match(line)) and "not run" not in line:
            assert found[1] in _STARTED, f"no test starts it, and it isn't marked: {line}"
            assert found[1] in (ROOT / "tests" / _STARTED[found[1]]).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_targets_of_make_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text()
    quoted = [
        target
        for _, block in FENCE.findall(text)
        for target in re.findall(r"^(?:.*&& )?make ([a-z][\w-]*)", block, re.MULTILINE)
    ]
    assert {*quoted, *re.findall(r"`make ([a-z][\w-]*)", text)} <= set(targets)


def test_workflows_call_targets_of_make_alone():
    """What a workflow does, people can do: its steps are targets, or set a machine up."""
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for step in re.findall(r"run: (.*)", workflow.read_text()):
            assert re.fullmatch(
                r"make( [a-z-]+)+( [A-Z]+=([\w.-]+|\$\{\{[^}]*\}\}))*|"
                r"sudo --preserve-env=PATH bash \.ci/run",
                step,
            ), step
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "name, made",
    [
        ("commands", reference.reference),
        ("api", api_reference.reference),
    ],
)
def test_a_page_from_the_code_is_up_to_date(name, made):
    assert (DOCS / f"{name}.md").read_text() == made(), f"docs/{name}.md is stale: run make docs"


def test_public_names_are_told_with_what_they_take(monkeypatch):
    def cut(text: str, at: int = 3, *, end: str = "...") -> str:
        """Cut `text`.

            cut("abcdef", 2)

        Or a little less.
        """

    monkeypatch.setattr(megatron_bar, "__all__", ["Source", "cut"], raising=False)
    monkeypatch.setattr(megatron_bar, "Source", Source, raising=False)
    monkeypatch.setattr(megatron_bar, "cut", cut, raising=False)
    page = api_reference.reference()
    assert "Its keys: [recipe.md](recipe.md#source)." in page
    assert page.endswith(
        "## cut\n\n```python\ncut(text: str, at: int = 3, *, end: str = '...') -> str\n```\n\n"
        'Cut `text`.\n\n```python\ncut("abcdef", 2)\n\n```\nOr a little less.\n'
    )


def test_the_first_hour_can_be_typed(tmp_path, monkeypatch, capsys):
    """All of its lines in their order; those that train or read what training made are left out."""
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "first-hour.md").read_text()
    quick = [
        words
        for _, block in FENCE.findall(page)
        for line in block.splitlines()
        if line.startswith("megatron-bar ")
        and (
            (words := shlex.split(line, comments=True)[1:])[0] in ("init", "plan")
            or "--dry-run" in words
        )
    ]
    assert [words[0] for words in quick] == ["init", "run", "init", "plan"]
    for words in quick:
        assert main(words) == 0, words
    told = capsys.readouterr().out
    assert "runs/toy-fast: 17 of 17 stages to run" in told and "GPU-hours" in told
