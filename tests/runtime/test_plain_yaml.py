"""YAML as people mean it, and what is wrong with a line for people."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.plain_yaml import parse_yaml, read_yaml


@pytest.mark.parametrize(
    "text, value",
    {
        "12:00:00": "12:00:00",
        "1_000": "1_000",
        "on": "on",
        "no": "no",
        "2026-11-27": "2026-11-27",
        "50B": "50B",
        "=": "=",
        "'010'": "010",
        '"true"': "true",
        "1e-4": 1e-4,
        "1.10": 1.1,
        "010": 10,
        "-3": -3,
        "0x10": 16,
        "0o17": 15,
        ".5": 0.5,
        "-.inf": -math.inf,
        "true": True,
        "FALSE": False,
        "~": None,
        "": None,
        "null": None,
    }.items(),
)
def test_words_without_a_wanted_type_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(f"[{text}]" if text else "[~]", "here").plain()[0]
    assert found == value and type(found) is type(value)


def test_anchors_aliases_and_merge_keys_work():
    text = "{a: &a {x: 1, y: 2}, b: {<<: *a, y: 3}, c: {<<: [{x: 5}, *a]}, d: *a}"
    assert parse_yaml(text, "here").plain() == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 5, "y": 2},
        "d": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    "text, message",
    {
        "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n": ":5: c is given twice, the first time in line 3",
        "a: 1\na: 2": ":2: a is given twice",
        "a: [1,\nb: 2": "this is not YAML",
        "a: *none": ":1: this is not YAML: found undefined alias",
        "a: &a [*a]": ":1: an anchor refers to itself",
        "a: 1\nb: !env HOME": ":2: the tag !env means nothing here",
        "a: !!python/object/apply:os.getcwd []": (
            ":1: the tag !!python/object/apply:os.getcwd means"
        ),
        "{[a]: 1}": ":1: a key is a word",
        "a: 1\n---\nb: 2": "this is not YAML",
        "[" * 5000: "nest",
    }.items(),
)
def test_what_is_wrong_is_reported_with_its_line(text, message, tmp_path):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(BarError) as raised:
        read_yaml(tmp_path / "f.yaml", "recipe")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"recipe {tmp_path / 'f.yaml'}")


def test_files_that_are_not_text_and_a_mark_at_the_beginning(tmp_path):
    path: Path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path, "site").plain() == {"name": "x"}
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(BarError, match="not text in UTF-8"):
        read_yaml(path, "site")
    with pytest.raises(BarError, match=r"site .*none\.yaml doesn't exist"):
        read_yaml(tmp_path / "none.yaml", "site")
