"""What a run needs on disk, added up."""

from __future__ import annotations

from pathlib import Path

from megatron_bar.cli import main

LAW = Path(__file__).parents[3] / "examples" / "law.yaml"  # on OLMo-2 7B
# In bf16: twice the dense model's 7.30 B parameters, and 11.63 B of each two-expert model: branch,
# three trainings, merge, route, export.
CHECKPOINTS = "192.0 GB of checkpoints stay"


def _disk(capsys, *overrides: str) -> str:
    main(["plan", str(LAW), *overrides])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Disk: ")]
    return line


def test_checkpoints_and_the_states_of_the_largest_stage_are_added_up(capsys):
    # RLVR trains 7.30 B parameters of 14 bytes each, and a new state stands beside the last one.
    line = _disk(capsys)
    assert CHECKPOINTS in line and "up to 204.4 GB more" in line
    line = _disk(capsys, "domains.law.rlvr.keep=3")
    assert CHECKPOINTS in line and "up to 408.7 GB more" in line


def test_domains_train_side_by_side(capsys):
    # What opens 5.15 B parameters in SFT, for a second domain.
    line = _disk(
        capsys,
        "domains.math.sft={data: [{path: x.jsonl}], steps: 9, dtype: bfloat16}",
    )
    assert "up to 348.6 GB more" in line, line  # 204.4, and twice 72.1
