"""A stage is made anew for what matters to it, and for nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.recipe.renamed import renamed
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime import digests
from megatron_bar.stages.provenance import changes, record

_TRAINING = {"steps": 3, "global_batch_size": 2}
_EARLIER = Path(__file__).parent / "earlier"
# A field of some kinds of stages with another value than theirs.
_OTHERWISE = {
    "branch": {"seed": 4},
    "sft": {"chat_template": "olmo"},
    "merge": {"shared": "published"},
    "route": {"fraction": 0.25},
    "evaluate": {"seed": 4},
    "export": {"chat_template": None},
}


@pytest.fixture
def brought(tmp_path, monkeypatch) -> Path:
    """What a user brings: a model's folder, data and a recipe, an hour old; the current folder."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (tmp_path / "model" / name).write_text(f'{{"name": "{name}"}}')
    for name in ("texts", "chats", "questions"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"of": "{name}"}}\n')
    (tmp_path / "chat.jinja").write_text("{% generation %}{% endgeneration %}")
    recipe = {
        "name": "law",
        "anchor": "model",
        "chat_template": "chat.jinja",
        "domains": {
            "law": {
                "midtrain": _TRAINING | {"data": [{"path": "texts.jsonl"}]},
                "sft": _TRAINING | {"data": [{"path": "chats.jsonl"}]},
                "rlvr": {"steps": 1, "data": [{"path": "questions.jsonl", "verifier": "math"}]},
                "tasks": [{"path": "questions.jsonl", "verifier": "math"}],
            }
        },
        "route": {"training": _TRAINING},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for path in tmp_path.rglob("*"):
        _age(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _age(path: Path) -> None:
    status = path.stat()
    os.utime(path, (status.st_atime - 3600, status.st_mtime - 3600))


def _records(*overrides: str) -> dict[str, dict]:
    """What each stage leaves, as it is read again."""
    stages = stage_graph(load_recipe(Path("recipe.yaml"), overrides))
    return json.loads(json.dumps({stage.name: record(stage) for stage in stages}))


def _changed(records: dict[str, dict], *overrides: str) -> dict[str, list[str]]:
    stages = stage_graph(load_recipe(Path("recipe.yaml"), overrides))
    found = {
        stage.name: [str(change) for change in changes(records[stage.name], stage)]
        for stage in stages
    }
    return {name: reported for name, reported in found.items() if reported}


def test_the_same_bytes_elsewhere_or_at_another_time_change_nothing(brought):
    made = _records()
    for path in brought.rglob("*.*"):
        path.touch()
    assert _changed(made) == {}
    assert _changed(made, f"anchor={brought / 'model'}") == {}
    shutil.copy("chats.jsonl", "same.jsonl")
    shutil.copytree("model", "copy")
    (brought / "copy" / "README.md").write_text("other words")
    assert _changed(made, "anchor=copy", f"chat_template={brought / 'chat.jinja'}") == {}
    # Route draws its sample by the sources' names.
    moved = _changed(made, "domains.law.sft.data.0.path=same.jsonl")
    assert moved == {"routed": ["domains.law.sft.data.0.name is same, was chats"]}
    assert _changed(made, "domains.law.sft.data=[{path: same.jsonl, name: chats}]") == {}


def test_other_bytes_of_the_same_size_are_reported_by_the_stages_that_read_them(brought):
    made, status = _records(), Path("chats.jsonl").stat()
    Path("chats.jsonl").write_text('{"of": "chatS"}\n')
    os.utime("chats.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))
    reported = "has other contents (domains.law.sft.data.0.path)"
    found = _changed(made)
    assert found.keys() == {"law/sft", "routed"}
    assert all(
        len(words) == 1 and words[0].endswith(f"chats.jsonl {reported}") for words in found.values()
    )
    Path("model/tokenizer.json").write_text("{}")
    assert [*_changed(made)] == ["anchor", "law/sft", "routed"]


def test_of_a_models_folder_the_file_that_is_another_one_is_named(brought):
    made = _records()
    Path("model/tokenizer.json").write_text("{}")
    folder = brought / "model"
    assert _changed(made) == {
        "anchor": [f"{folder / 'tokenizer.json'} has other contents (anchor)"]
    }
    Path("model/generation_config.json").write_text("{}")  # a new one counts, too
    (reported,) = _changed(made)["anchor"]
    assert reported == (
        f"{folder / 'generation_config.json'} and 1 more have other contents (anchor)"
    )
    del made["anchor"]["files"]  # versions before didn't record them
    assert _changed(made) == {"anchor": [f"{folder} has other contents (anchor)"]}


def test_a_verifier_of_ones_own_counts_by_what_its_file_holds(brought):
    (brought / "law").mkdir()
    for name in ("law/mine.py", "copy.py"):
        Path(name).write_text("def score(prompt, response, reference): return 1\n")
    named = "domains.law.rlvr.data.0.verifier={}".format
    made = _records(named("law/mine.py:score"))
    (source,) = made["law/rlvr"]["settings"]["training"]["data"]
    assert source["verifier"] == f"{brought / 'law' / 'mine.py'}:score"
    Path("law/mine.py").touch()
    assert _changed(made, named("law/mine.py:score")) == {}
    assert _changed(made, named(f"{brought}/copy.py:score")) == {}
    assert [*_changed(made, named("law/mine.py:strict"))] == ["law/rlvr"]
    assert [*_changed(made, named("math"))] == ["law/rlvr"]
    Path("law/mine.py").write_text("def score(prompt, response, reference): return 0\n")
    assert _changed(made, named("law/mine.py:score")) == {
        "law/rlvr": [f"{source['verifier']} has other contents (domains.law.rlvr.data.0.verifier)"]
    }
    Path("law/mine.py").unlink()
    assert _changed(made, named("law/mine.py:score")) == {}


def test_the_usual_column_of_references_is_the_same_written_out_or_not(brought):
    written = "domains.law.rlvr.data.0.reference_column=answer"
    assert _changed(_records(), written) == _changed(_records(written)) == {}
    assert [*_changed(_records(), written.replace("=answer", "=solution"))] == ["law/rlvr"]


@pytest.mark.parametrize("path", ["law/*.jsonl", "law"])
def test_every_file_behind_a_path_counts(brought, path):
    (brought / "law").mkdir()
    shutil.copy("chats.jsonl", "law/a.jsonl")
    wide = f"domains.law.sft.data=[{{path: {path}, name: law}}]"
    made = _records(wide)
    assert _changed(made, wide) == {}
    shutil.copy("texts.jsonl", "law/b.jsonl")
    assert [*_changed(made, wide)] == ["law/sft", "routed"]


def test_files_that_are_gone_leave_what_was_made_of_them(brought):
    made = _records()
    shutil.rmtree("model")
    for name in ("texts", "chats", "questions"):
        Path(f"{name}.jsonl").unlink()
    assert _changed(made) == {}
    assert [*_changed(made, "domains.law.sft.data.0.path=chta.jsonl")] == ["law/sft", "routed"]


@pytest.mark.parametrize(
    "override, changed",
    {
        "chat_template=tulu": [
            "law/sft",
            "law/rlvr",
            "evaluate/anchor",
            "evaluate/law",
            "evaluate/merged",
            "evaluate/routed",
            "hf",
            "routed",
        ],
        "evaluate.max_new_tokens=99": [
            "evaluate/anchor",
            "evaluate/law",
            "evaluate/merged",
            "evaluate/routed",
        ],
        "domains.law.midtrain.data.0.messages_column=turns": [],
        "domains.law.sft.data.0.verifier=exact": [],
        "domains.law.sft.data.0.repeat=2": ["law/sft"],
        "domains.law.sft.data.0.count=1": ["law/sft", "routed"],
        "domains.law.sft.lr=0.5": ["law/sft"],
        "domains.law.sft.save_every=9": [],
        "route.fraction=0.5": ["routed"],
    }.items(),
)
def test_a_key_matters_to_the_stages_that_it_decides(brought, override, changed):
    assert {*_changed(_records(), override)} == {*changed}


def test_a_change_is_reported_as_the_recipe_calls_it(brought):
    reported = _changed(
        _records(),
        "domains.law.rlvr.temperature=0.5",
        "anchor=gone",
        "route.training.lr=0.25",
        "merge.shared=branches",
        "route.experts_per_token=1",
    )
    assert reported == {
        "anchor": [f"anchor is gone, was {brought / 'model'}"],
        "law/rlvr": ["domains.law.rlvr.temperature is 0.5, was 1.0"],
        "merged": ["merge.shared is branches, was published"],
        "routed": [
            "route.training.lr is 0.25, was 0.0001",
            "route.experts_per_token is 1, was unset",
        ],
    }


@pytest.mark.slow
def test_what_earlier_versions_recorded_still_counts(brought):
    """They took files by name, size and time, gave mid-training a template, had fewer keys and
    former names of others, and computed in float32 where the recipe named no type.
    """
    made = _records()
    for done in made.values():
        done["outside"] = {path: _by_time(Path(path)) for path in done["outside"]}
        training = done["settings"].get("training", {})
        for key in ("max_skips", "save_async"):
            training.pop(key, None)
        done["identity"] = "of settings and files"
        if training:
            training["dtype"] = "float32"
            for former, present in renamed(Rlvr).items():
                if present in training:
                    training[former] = training.pop(present)
        for source in training.get("data", []):
            source.pop("split")
    made["law/midtrain"]["settings"]["chat_template"] = "olmo"
    assert _changed(made) == {}
    assert [*_changed(made, "domains.law.sft.max_skips=3")] == ["law/sft"]
    assert _changed(made, "domains.law.sft.min_lr_ratio=0.5") == {
        "law/sft": ["domains.law.sft.min_lr_ratio is 0.5, was 0.0"]
    }
    Path("model/README.md").write_text("not read")
    assert _changed(made) == {}
    Path("chats.jsonl").touch()
    assert [*_changed(made)] == ["law/sft", "routed"]


def _by_time(path: Path) -> list[list]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def test_a_record_is_no_part_of_the_recipe(brought):
    made = _records()
    before = copy.deepcopy(made)
    _changed(made, "domains.law.sft.lr=0.5")
    assert made == before


def test_a_file_is_read_once(brought, monkeypatch):
    """By this process, and by the next one where digests are kept in a folder."""
    read = []
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(digests, "_remembered", {})
    monkeypatch.setattr(digests, "_folder", brought / "digests")
    digest = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: read.append(path.name) or digest(path))
    made = _records()
    files = {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "texts.jsonl",
        "chats.jsonl",
        "questions.jsonl",
        "chat.jinja",
    }
    assert sorted(read) == sorted(files)
    read.clear()
    digests._remembered.clear()
    assert _changed(made) == {} and read == []
    Path("chats.jsonl").touch()
    assert _changed(made) == {} and read == ["chats.jsonl"]


def test_records_of_the_version_before_stages_were_classes_still_count():
    """They are of tests/stages/earlier/recipe.yaml, with three methods."""
    lines = map(json.loads, (_EARLIER / "records.jsonl").read_text().splitlines())
    reported, stages = {}, {}
    for line in lines:
        overrides = tuple(line["overrides"])
        if overrides not in stages:
            recipe = load_recipe(_EARLIER / "recipe.yaml", overrides)
            stages[overrides] = {stage.name: stage for stage in stage_graph(recipe)}
        stage = stages[overrides][line["stage"]]
        if found := changes(line["record"], stage):
            reported[overrides, stage.name] = list(map(str, found))
        changed = dataclasses.replace(stage, **_OTHERWISE.get(stage.KIND, {"inputs": {}}))
        assert bool(changes(line["record"], changed)) == (stage.KIND in _OTHERWISE)
    assert reported == {}
