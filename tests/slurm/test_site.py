"""site.yaml as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.launch.slurm.site import TEMPLATES, Nodes, Site, load_site
from megatron_bar.runtime.errors import BarError


def _site(folder: Path, text: str) -> Site:
    (folder / "site.yaml").write_text(text)
    return load_site(folder / "site.yaml")


def test_times_accounts_and_variables_are_what_is_written(tmp_path):
    site = _site(
        tmp_path,
        """
account: 012345
gpu_nodes: {partition: gpu, ranks: 8, gpus: on, time: 24:00:00}
cpu_nodes: {partition: 7, time: 12:00:00, cpus: 010}
times: {evaluate: 2:00:00, math/sft: 90, merge: 1-00:00:00}
environment: {NCCL_IB_DISABLE: true, X: on, Y: 010, Z: 1.10, AT: 2026-11-27, PATH: "${HOME}/bin:a"}
secrets:
""",
    )
    assert site.account == "012345"
    assert (site.gpu_nodes.time, site.cpu_nodes.time) == ("24:00:00", "12:00:00")
    assert site.times == {"evaluate": "2:00:00", "math/sft": "90", "merge": "1-00:00:00"}
    assert site.environment == {
        "NCCL_IB_DISABLE": "true",
        "X": "on",
        "Y": "010",
        "Z": "1.10",
        "AT": "2026-11-27",
        "PATH": "${HOME}/bin:a",
    }
    assert site.gpu_nodes.gpus is True
    assert (site.cpu_nodes.partition, site.cpu_nodes.cpus) == ("7", 10)
    assert site.secrets == []


def test_what_is_not_said_stays_at_its_default(tmp_path):
    assert _site(tmp_path, "") == Site()
    site = _site(tmp_path, "gpu_nodes: {partition: a100}")
    assert site.gpu_nodes == Nodes(partition="a100", ranks=8, gpus=True)
    assert load_site(TEMPLATES / "site.yaml").cpu_nodes.time == "04:00:00"


@pytest.mark.parametrize(
    "time", ["25:99", "12:00:60", "1-24:00:00", "1-", "soon", "12h", "-5", "1:2:3:4", "''"]
)
def test_times_that_slurm_has_not_are_refused(time, tmp_path):
    with pytest.raises(BarError, match=r"times\.sft '.*' is not a time as SLURM has it"):
        _site(tmp_path, f"times: {{sft: {time}}}")


def test_all_that_is_no_key_or_no_value_is_reported_with_its_line(tmp_path):
    with pytest.raises(BarError) as raised:
        _site(tmp_path, "acount: x\ngpu_nodes:\n  rank: 8\n  gpus: some\nmodules: cuda\n")
    where = f"site {tmp_path / 'site.yaml'}"
    assert str(raised.value).splitlines() == [
        f"{where}:1: acount: there is no such key; did you mean account?",
        f"{where}:3: gpu_nodes.rank: there is no such key; did you mean ranks?",
        f"{where}:4: gpu_nodes.gpus is 'some' and should be true or false",
        f"{where}:5: modules is 'cuda' and should be a list, as in [cuda]",
    ]
    with pytest.raises(BarError, match=":3: account is given twice, the first time in line 1"):
        _site(tmp_path, "account: a\nwarning: 60\naccount: b\n")
