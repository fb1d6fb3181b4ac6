"""What a stage reads from outside the run decides whether it is done."""

from __future__ import annotations

from megatron_bar.recipe.graph import Stage
from megatron_bar.stages.context import identity


def test_every_file_behind_a_path_counts(tmp_path, monkeypatch):
    """Of a pattern, of a folder, and below ~: a file more, or a longer one, is another input."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "law").mkdir()
    stages = [Stage("sft", "sft", settings={"training": {"data": [{"path": path}]}})
              for path in (f"{tmp_path}/law/*.jsonl", f"{tmp_path}/law", "~/law/a.jsonl")]

    def identities() -> list[str]:
        return [identity(stage) for stage in stages]

    (tmp_path / "law" / "a.jsonl").write_text("{}\n")
    first = identities()
    assert identities() == first
    (tmp_path / "law" / "a.jsonl").write_text("{}\n{}\n")
    second = identities()
    assert all(one != two for one, two in zip(first, second))
    (tmp_path / "law" / "b.jsonl").write_text("{}\n")
    third = identities()
    assert third[0] != second[0] and third[1] != second[1] and third[2] == second[2]
