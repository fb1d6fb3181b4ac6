"""Files as people have them: every ending, gzip, folders and patterns."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from megatron_bar.data import byte_files
from megatron_bar.data.byte_files import GzipBytes
from megatron_bar.data.paths import files_of
from megatron_bar.data.sources import load_conversations, load_texts, open_source, source_name
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError

CHAT = [{"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "Yo"}]
RECORD = {"messages": CHAT, "text": "some text"}
LINE = json.dumps(RECORD)
BOM = "\ufeff"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.jsonl", BOM + LINE),
        ("a.json", BOM + f"[{LINE}]"),
        ("a.ndjson", LINE + "\n"),
        ("A.JSONL", LINE),
        ("a.JsonL.GZ", LINE),
        ("a.jsonl.gz", BOM + LINE),
        ("a.json.gz", LINE),
        ("a.json.gz", f"[{LINE}]"),
        ("a.json", json.dumps(RECORD, indent=2)),
        ("a.json.gz", json.dumps(RECORD, indent=2)),
        ("a.json", json.dumps({"data": [RECORD]})),
        ("a.json", json.dumps({"version": 1, "data": [RECORD]}, indent=1)),
        ("a.json", f"\n{LINE}\n\r\n"),
    ],
)
def test_json_of_any_kind(tmp_path, name, text):
    source = Source(path=str(write(tmp_path / name, text)))
    assert [c.item for c in load_conversations(source, 0)] == [RECORD]
    assert load_texts(source, 0) == ["some text"]
    assert source_name(source).lower() == "a"


def test_text_in_gzip(tmp_path):
    source = Source(path=str(write(tmp_path / "speech.TXT.gz", BOM + "One.\r\nTwo.")))
    assert load_texts(source, 0) == ["One.\nTwo."] and source_name(source) == "speech"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(byte_files, "_BYTES_AT_ONCE", 700)
    monkeypatch.setattr(byte_files, "_COMPRESSED_AT_ONCE", 64)
    monkeypatch.setattr(byte_files, "_POINTS_APART", 3000)


def _numbered(count: int) -> list[str]:
    rng = random.Random(0)
    return [
        json.dumps({"text": f"{i} " + "x" * rng.randrange(400) + str(rng.random())})
        for i in range(count)
    ]


@pytest.mark.usefixtures("small_blocks")
def test_any_line_of_a_gzip_file(tmp_path):
    """Of several members, as pigz and cat make them, with empty lines, read in any order."""
    lines = _numbered(300)
    path = tmp_path / "a.jsonl.gz"
    halves = ("\n".join(lines[:100]) + "\n\n", "\r\n" + "\n".join(lines[100:]) + "\n")
    path.write_bytes(b"".join(gzip.compress(half.encode()) for half in halves) + b"\0" * 512)
    source = Source(path=str(path))
    assert load_texts(source, 0) == [json.loads(line)["text"] for line in lines]
    drawn = open_source(source, 0, texts=True)
    for start, stop in ((290, 300), (0, 3), (95, 105), (150, 151)):
        texts = [json.loads(line)["text"] for line in lines[start:stop]]
        assert list(drawn.texts(start, stop)) == texts
    some = open_source(Source(path=str(path), count=20), 0, texts=True)
    assert [int(text.split()[0]) for text in some.texts()] == list(some.chosen)


@pytest.mark.usefixtures("small_blocks")
def test_few_points_and_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_files, "_MOST_POINTS", 8)
    content = "".join(_numbered(600)).encode()
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(content))
    file = GzipBytes(path)
    blocks = list(file.blocks())
    assert b"".join(blocks) == content and max(map(len, blocks)) <= 700
    assert 4 <= len(file._points) <= 8
    with file.open() as reader:
        for start in (0, 90_000, 40_000, len(content) - 10, 5):
            assert reader.read(start, start + 2000) == content[start : start + 2000]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data + b"rubbish",
        lambda data: b"no gzip",
        lambda data: data[:-8] + b"\1" * 8,
    ],
)
def test_a_damaged_gzip_file(tmp_path, spoil):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(spoil(gzip.compress("\n".join(_numbered(50)).encode())))
    with pytest.raises(BarError, match=r"a\.jsonl\.gz is not a whole gzip file") as error:
        load_texts(Source(path=str(path)), 0)
    assert "\n" not in str(error.value)


@pytest.fixture
def law(tmp_path) -> Path:
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.json"):
        text = json.dumps({"text": name, "messages": CHAT})
        write(tmp_path / "law" / name, text)
    for name in ("README.md", ".cache/d.jsonl", "LICENSE"):
        write(tmp_path / "law" / name, "about")
    return tmp_path / "law"


@pytest.mark.parametrize(
    "path, found, name",
    [
        ("law", ["a.jsonl.gz", "b.jsonl", "deep/c.json"], "law"),
        ("law/", ["a.jsonl.gz", "b.jsonl", "deep/c.json"], "law"),
        ("law/*.jsonl", ["b.jsonl"], "law"),
        ("law/*.json*", ["a.jsonl.gz", "b.jsonl"], "json"),
        ("law/b*.jsonl", ["b.jsonl"], "b"),
        ("law/**/?.js*", ["a.jsonl.gz", "b.jsonl", "deep/c.json"], "js"),
        ("law/[a-b].jsonl*", ["a.jsonl.gz", "b.jsonl"], "a-b.jsonl"),
    ],
)
def test_folders_and_patterns(law, path, found, name, monkeypatch):
    monkeypatch.chdir(law.parent)
    source = Source(path=path)
    assert load_texts(source, 0) == found
    assert [
        c.where.partition("law/")[2].split(":")[0] for c in load_conversations(source, 0)
    ] == found
    some = Source(path=path, count=1, repeat=2)
    assert len(load_texts(some, 0)) == 2


def test_home_is_filled_in(law, monkeypatch):
    monkeypatch.setenv("HOME", str(law.parent))
    for path in ("~/law/b.jsonl", "$HOME/law/b.jsonl", "${HOME}/law/*.jsonl"):
        assert load_texts(Source(path=path), 0) == ["b.jsonl"]


def test_a_bracket_in_a_name(tmp_path):
    path = write(tmp_path / "a[1].jsonl", LINE)
    assert files_of(str(path)) == [path]


def test_the_identity_of_a_folder_is_that_of_its_files(law):
    before = open_source(Source(path=str(law)), 0, texts=True).identity
    assert open_source(Source(path=str(law)), 0, texts=True).identity == before
    write(law / "e.jsonl", LINE)
    assert open_source(Source(path=str(law)), 0, texts=True).identity != before


@pytest.mark.parametrize(
    "make, path, fault",
    [
        ("x/a.csv", "x", r"'\.csv' isn't supported; name the files that are meant by a pattern"),
        ("x/a.jsonl.zst", "x/a.jsonl.zst", r"'\.zst' isn't supported; give \.jsonl"),
        ("x/README.md", "x", "holds no file that is read"),
        ("x/a.jsonl", "x/*.parquet", "matches no file"),
        ("x/a.jsonl", "~nobody/a.jsonl", "is not a file"),
        ("x/a.jsonl", "$NOWHERE/a.jsonl", "is not a file"),
        ("x/a.parquet.gz", "x/a.parquet.gz", r"'\.gz' isn't supported"),
    ],
)
def test_paths_without_data(tmp_path, make, path, fault, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / make, LINE)
    with pytest.raises(BarError, match=fault) as error:
        load_texts(Source(path=path), 0)
    assert "\n" not in str(error.value)


def test_a_missing_column_in_the_last_file_says_which(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.jsonl", LINE)
    write(tmp_path / "3.jsonl", '{"body": "x"}')
    with pytest.raises(BarError, match=r"3\.jsonl:1: column 'text' is missing; there are body"):
        load_texts(Source(path=str(tmp_path / "*.jsonl")), 0)
    with pytest.raises(BarError, match=r"3\.jsonl:1: column 'messages' is missing"):
        load_conversations(Source(path=str(tmp_path / "*.jsonl")), 0)
