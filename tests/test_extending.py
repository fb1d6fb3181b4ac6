"""What docs/extending.md and docs/how-to/ add is found: their diffs, applied together to a copy."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_bar.checkpoints.names import slots
from megatron_bar.costs.machine import Machine
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.provenance import changes, record

ROOT = Path(__file__).parents[1]
_DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NEW = "/dev/null"


def _files() -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Of each file in a diff: its path, the lines of a new one, the hunks of one that stands."""
    pages = [ROOT / "docs" / "extending.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
    for diff in (diff for page in pages for diff in _DIFF.findall(page.read_text())):
        for old, path, lines in re.findall(
            r"^--- (\S+)\n\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", diff, re.MULTILINE | re.DOTALL
        ):
            hunks = [hunk.splitlines() for hunk in re.split(r"^@@\n", lines, flags=re.MULTILINE)]
            yield (path, hunks[0], []) if old == _NEW else (path, [], hunks[1:])


def added(path: str) -> str:
    """The text of a file that a diff adds."""
    (lines,) = [lines for name, lines, _ in _files() if name == path]
    assert all(line.startswith("+") for line in lines)
    return "".join(line[1:] + "\n" for line in lines)


def _apply(folder: Path) -> None:
    for path, new, hunks in _files():
        target = folder / path
        if new:
            assert not target.exists(), path
            target.write_text(added(path))
            continue
        text = target.read_text()
        for hunk in hunks:
            before, after = (
                "".join(line[1:] + "\n" for line in hunk if line[0] in signs)
                for signs in (" -", " +")
            )
            assert text.count(before) == 1, f"{path}:\n{before}"
            text = text.replace(before, after)
        target.write_text(text)


def _forget_qwen3(folder: Path) -> None:
    """The example of a family is one that stands, so the copy is as it was before."""
    families = folder / "megatron_bar" / "models" / "families"
    (families / "qwen3.py").unlink()
    for path in (families / "__init__.py", folder / "tests" / "models_hf.py"):
        text = path.read_text().replace("olmo3, qwen3\n", "olmo3\n")
        path.write_text(
            "".join(line for line in text.splitlines(keepends=True) if "qwen3" not in line)
        )


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with all that the page adds."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("megatron_bar", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    shutil.copy(ROOT / "tests" / "models_hf.py", folder / "tests")
    _forget_qwen3(folder)
    _apply(folder)
    return folder


def _says(folder: Path, code: str) -> str:
    """What the code prints, run in the copy."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        timeout=120,
        text=True,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _names(path: str) -> dict:
    names: dict = {}
    exec(added(path), names)
    return names


def test_a_verifier(extended):
    score = _names("examples/citations.py")["score"]
    reference = "26 U.S.C. 501 and 42 U.S.C. 1983"
    assert score("", "See 42 U.S.C. 1983.", reference) == 0.5
    assert score("", "No idea.", reference) == 0
    with pytest.raises(BarError, match="names no statute"):
        score("", "42 U.S.C. 1983", "none")
    _says(
        extended,
        """
from megatron_bar.recipe.training import Source
from megatron_bar.verifiers.registry import verifier_for
mine = Source(path="x.jsonl", verifier="examples/citations.py:score")
assert verifier_for(mine)("", "See 1 U.S.C. 2.", "1 U.S.C. 2 and 3 U.S.C. 4") == 0.5
""",
    )


def test_an_environment(extended):
    step = _names("examples/calculator.py")["step"]

    def says(content):
        return [{"role": "assistant", "content": content}]

    assert step(says("<function_calls>7 * 6</function_calls>"), "42") == "42"
    assert step(says("It is 42."), "42") is None
    _says(
        extended,
        """
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import Source
from megatron_bar.verifiers.environments import environment_of
mine = Source(path="x.jsonl", verifier="exact", environment="examples/calculator.py:step")
item = Conversation([], "sums", {"answer": "5"}, "sums.jsonl:1")
move = environment_of(mine, item)
called = "<function_calls>2+3</function_calls>"
assert move([{"role": "assistant", "content": called}]) == {"role": "environment", "content": "5"}
assert move([{"role": "assistant", "content": "5"}]) is None
""",
    )


def test_a_family(extended):
    """It reads and writes a config.json, has the sizes and the tensors, as the whole one has."""
    model = PRESETS["qwen3-8b"]
    found = json.loads(
        _says(
            extended,
            """
import dataclasses, json, pathlib, tempfile, torch
from megatron_bar.checkpoints.hf import hf_config, model_config_from_hf
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.presets import PRESETS, preset_named
from tests.models_hf import DENSE
model = PRESETS["qwen3-8b"]
assert preset_named("Qwen3-8B") == model and "Qwen3" in DENSE
with tempfile.TemporaryDirectory() as folder:
    config = hf_config(model, torch.bfloat16, {})
    pathlib.Path(folder, "config.json").write_text(json.dumps(config))
    assert model_config_from_hf(pathlib.Path(folder)) == model
print(json.dumps([dataclasses.asdict(model), [slot.hf_names for slot in slots(model)]]))
""",
        )
    )
    expected = [dataclasses.asdict(model), [slot.hf_names for slot in slots(model)]]
    assert found == json.loads(json.dumps(expected))


def test_a_method(extended):
    _says(
        extended,
        """
from pathlib import Path
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe, load_recipes
recipe = load_recipe(Path("examples/systems/unrouted.yaml"))
stages = {stage.name: stage for stage in stage_graph(recipe)}
assert "routed" not in stages and stages["hf"].inputs == {"checkpoint": "merged"}
names = [recipe.name for recipe in load_recipes(Path("examples/toy-compare.yaml"))]
assert "toy-compare/unrouted" in names
""",
    )


def test_a_stage(extended):
    stage = _names("megatron_bar/stages/cast.py")["CastStage"](
        "cast", {"checkpoint": "routed"}, dtype="float16"
    )
    made = record(stage)
    assert made == {"kind": "cast", "settings": {"dtype": "float16"}, "outside": {}, "files": {}}
    assert changes(made, stage) == []
    other = dataclasses.replace(stage, dtype="bfloat16")
    assert list(map(str, changes(made, other))) == ["cast is bfloat16, was float16"]
    plan = stage.plan(PRESETS["olmo2-1b"], Machine(), torch.bfloat16)
    assert plan.seconds > 0 and plan.memory.total < 8 << 30 and not stage.ON_GPU
    _says(
        extended,
        """
from pathlib import Path
from megatron_bar.launch.check import stage_models
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.registry import LABELS
toy = Path("examples/toy.yaml")
recipe = load_recipe(toy, ["cast=float16"])
assert stage_models(recipe, PRESETS["toy"])["cast"].num_experts == 5 and "cast" in LABELS
assert "cast" not in [stage.name for stage in stage_graph(load_recipe(toy))]
try:
    load_recipe(toy, ["cast=int3"])
except BarError as error:
    assert "cast 'int3' is not bfloat16, float16 or float32" in str(error)
else:
    raise AssertionError
""",
    )


def test_a_backend(extended):
    _says(
        extended,
        """
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.backends import backend_of
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.layout import Layout
check_settings(Rlvr(steps=1, backend="profiled"), Layout())
backend = backend_of("profiled")
assert backend.missing() is None and backend.prepare() is None and backend.PRELOAD is None
assert backend.fit.__module__.endswith("profiled")
""",
    )
