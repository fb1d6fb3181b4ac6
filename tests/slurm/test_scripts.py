"""The job scripts that submit writes, and how they go among commands like SLURM's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from megatron_bar.launch.slurm.failed_nodes import note_failed
from megatron_bar.runtime.stopping import CONTINUE_LATER
from tests.slurm.scripts import BAR_7B, fake_commands, run_script, scripts_of, site_file

GOLDEN = Path(__file__).parent / "golden"


REGENERATE = "MEGATRON_BAR_REGENERATE"


_ON_NODES = [
    f"domains.math.rlvr.{key}"
    for key in (
        "rollout_nodes=2",
        "rollout_python=/envs/vllm/bin/python",
        "rollout_options=[--tensor-parallel-size, '4']",
    )
]


@pytest.mark.parametrize(
    "folder, container, only, overrides",
    [
        ("bar-7b", {}, [], []),
        ("rollout-nodes", {}, ["math/rlvr"], _ON_NODES),
        (
            "pyxis",
            {
                "runtime": "pyxis",
                "image": "nvcr.io#nvidia/pytorch:25.09-py3",
                "mounts": ["/data:/data:ro", "/models"],
            },
            ["merged", "math/sft"],
            [],
        ),
        (
            "apptainer",
            {
                "runtime": "apptainer",
                "image": "/images/bar.sif",
                "mounts": ["/data:/data:ro", "/models"],
            },
            ["merged", "math/sft"],
            [],
        ),
        (
            "podman",
            {
                "runtime": "podman",
                "image": "localhost/bar",
                "mounts": ["/data:/data:ro", "/models"],
                "options": ["--ulimit=memlock=-1:-1", "--device=/dev/infiniband"],
            },
            ["merged", "math/sft"],
            [],
        ),
    ],
)
def test_the_scripts_of_bar_7b_are_the_golden_ones(
    folder, container, only, overrides, workplace, capsys
):
    """Set MEGATRON_BAR_REGENERATE=1 to write them anew; the difference is yours to read."""
    models = [f"{role}=OLMo-2-1124-7B-Instruct" for role in ("anchor", "pretrained")]
    changes = {"account": "my-project"} | (
        {"container": container, "python": None} if container else {}
    )
    chosen = [word for name in only for word in ("--only", name)]
    scripts = scripts_of(
        capsys,
        *("--site", site_file(workplace, **changes), *chosen, *models, *overrides),
        recipe=str(BAR_7B),
    )
    assert not (workplace / "runs").exists()
    texts = {
        f"{stage.replace('/', '-')}.sbatch": text.replace(str(workplace), "/home/me")
        for stage, text in scripts.items()
    }
    golden = GOLDEN / folder
    if os.environ.get(REGENERATE):
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir(parents=True)
        for name, text in texts.items():
            (golden / name).write_text(text)
    assert texts == {path.name: path.read_text() for path in golden.iterdir()}


def test_servers_on_nodes_of_their_own_run_beside_the_ranks_and_end_with_them(
    workplace, capsys, tmp_path, monkeypatch
):
    """The script itself runs, among commands that do what SLURM's do."""
    models = [f"{role}=OLMo-2-1124-7B-Instruct" for role in ("anchor", "pretrained")]
    script = scripts_of(capsys, "--only", "math/rlvr", *models, *_ON_NODES, recipe=str(BAR_7B))
    calls, ended = tmp_path / "calls", tmp_path / "ended"
    srun = f"""case "$*" in
*slurm.servers*)
    trap 'touch {ended}; exit' TERM
    echo "servers $*" >> {calls}; echo "$MEGATRON_BAR_SERVERS" >> {calls}
    while :; do sleep 0.05; done ;;
*)
    while ! [ -e {calls} ]; do sleep 0.05; done
    echo "ranks $*" >> {calls} ;;
esac"""
    scontrol = "echo NodeAddr=127.0.0.1"
    fake_commands(tmp_path / "bin", {"srun": srun, "scontrol": scontrol}, monkeypatch)
    done = run_script(script["math/rlvr"])
    assert done.returncode == 0, done.stderr
    servers, folder, ranks = calls.read_text().splitlines()
    assert "--nodes=2 " in servers and "--relative=4 " in servers
    assert "--nodes=4 " in ranks and "--relative=0 " in ranks
    assert folder.endswith("runs/bar-7b/slurm/math-rlvr.servers/7.0") and Path(folder).is_dir()
    deadline = time.monotonic() + 10
    while not ended.exists():
        assert time.monotonic() < deadline, "the servers go on"
        time.sleep(0.05)


def test_every_script_is_valid_shell_however_things_are_called(workplace, capsys):
    for container in (
        {"runtime": "pyxis", "image": "nvcr.io#a/b c:1", "mounts": ["/data"]},
        {"runtime": "apptainer", "image": "it's.sif", "mounts": ["/a:/b"]},
        {"runtime": "podman", "image": "it's", "options": ["--env=A=$HOME b"]},
    ):
        site = site_file(
            workplace, container=container, modules=["cuda/12"], setup=["echo ${HOME}"]
        )
        for script in scripts_of(capsys, "--site", site).values():
            assert "\necho ${HOME}\n" in script
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("asks", [None, "STOP", "math/sft/STOP"])
def test_a_job_that_saved_is_queued_again_unless_a_stop_file_asks_it_to_stop(
    asks, workplace, capsys, tmp_path, monkeypatch
):
    """The script itself runs, among commands that do what SLURM's do at that moment."""
    script = scripts_of(capsys, "--only", "math/sft")["math/sft"]
    calls = tmp_path / "calls"
    commands = {
        "srun": "exit 75",
        "squeue": "echo RUNNING",
        "sleep": "",
        "scontrol": f'echo "$*" >> {calls}\necho NodeAddr=127.0.0.1',
    }
    fake_commands(tmp_path / "bin", commands, monkeypatch)
    if asks is not None:
        (workplace / "runs" / "bar-7b" / asks).parent.mkdir(parents=True)
        (workplace / "runs" / "bar-7b" / asks).touch()
    ended = run_script(script)
    assert ended.returncode == CONTINUE_LATER, ended.stderr
    assert ("requeue 7" in calls.read_text().splitlines()) == (asks is None)
    if asks is not None:
        assert f"runs/bar-7b/{asks}; submit again to go on" in ended.stdout


@pytest.mark.parametrize(
    "failures, allocated, excluded",
    [
        ("", "n1", None),
        ("n1 n2", "n1", None),
        ("n1 n2 n2", "n1", "n2,n9"),
        ("n1 n1", "n1", "n1,n9"),
    ],
)
def test_a_node_that_failed_twice_is_left_out_when_a_job_is_queued_again(
    failures, allocated, excluded, workplace, capsys, tmp_path, monkeypatch
):
    script = scripts_of(capsys, "--only", "math/sft")["math/sft"]
    run = workplace / "runs" / "bar-7b"
    (run / "slurm").mkdir(parents=True)
    for host in failures.split():
        note_failed(run, [host], "math/sft: rank 3 was ended by SIGKILL")
    with open(run / "slurm" / "failed-nodes.txt", "a") as file:
        file.write("\n\n")  # as people leave them
    calls = tmp_path / "calls"
    scontrol = f'echo "$*" >> {calls}\necho NodeAddr=127.0.0.1 ExcNodeList=n9\n'
    commands = {
        "srun": f"echo srun >> {calls}; exit 77",
        "squeue": "echo RUNNING",
        "sleep": "",
        "scontrol": scontrol + 'if [ "$2" = hostnames ]; then echo n3; echo n1; fi',
    }
    fake_commands(tmp_path / "bin", commands, monkeypatch)
    ended = run_script(script, allocated)
    said = calls.read_text().splitlines()
    assert "requeue 7" in said, ended.stderr
    updates = [line for line in said if line.startswith("update ")]
    assert set(updates) == ({f"update JobId=7 ExcNodeList={excluded}"} if excluded else set())
    # Where it has such a node it is queued again before anything starts.
    assert ("srun" in said) == (excluded != "n1,n9")


def test_scripts_leave_out_nodes_that_failed_twice(workplace, capsys):
    site = site_file(workplace, gpu_nodes={"options": ["--exclude=n7", "--qos=high"]})
    run = workplace / "runs" / "bar-7b"
    (run / "slurm").mkdir(parents=True)
    for hosts in (["n1"], ["n2", "n1"]):
        note_failed(run, hosts, "math/sft: they gave no sign of life any more")
    script = scripts_of(capsys, "--site", site, "--only", "math/sft")["math/sft"]
    assert "#SBATCH --exclude=n7,n1\n" in script and script.count("--exclude") == 1
    assert "#SBATCH --qos=high\n" in script
    failed = run / "slurm" / "failed-nodes.txt"
    failed.write_text("\n".join(failed.read_text().splitlines()[1:]))
    assert (
        "#SBATCH --exclude=n7\n"
        in scripts_of(capsys, "--site", site, "--only", "math/sft")["math/sft"]
    )


def test_a_stage_that_fills_its_nodes_has_them_for_itself(workplace, capsys):
    site = site_file(workplace, network="ib0")
    scripts = scripts_of(capsys, "--site", site)
    whole, part = scripts["math/sft"], scripts["safety/sft"]  # the second has four GPUs of eight
    assert "#SBATCH --exclusive\n" in whole and "#SBATCH --mem=0\n" in whole
    assert "--exclusive" not in part and "--mem" not in part
    for script in scripts.values():
        on_gpus = "--gpus-per-node" in script
        assert ("expandable_segments:True" in script) == on_gpus
        assert ("TORCH_FR_BUFFER_SIZE" in script) == on_gpus
        assert 'GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-ib0}"' in script
        health = "warn" if on_gpus else "off"
        assert f"export MEGATRON_BAR_HEALTH_CHECK={health}\n" in script


def test_conversions_ask_for_cpu_nodes_and_training_for_gpu_nodes(workplace, capsys):
    scripts = scripts_of(capsys)
    for stage, nodes, gpus in (
        ("math/sft", 8, 8),
        ("safety/sft", 1, 4),
        ("routed", 3, 8),
        ("evaluate/merged", 8, 8),
    ):
        assert f"#SBATCH --nodes={nodes}\n" in scripts[stage]
        assert f"#SBATCH --gpus-per-node={gpus}\n" in scripts[stage]
        assert f"#SBATCH --cpus-per-task={8 * gpus}\n" in scripts[stage]
        assert "#SBATCH --partition=gpu\n" in scripts[stage]
    for stage in ("anchor", "math/branch", "merged", "hf", "report"):
        assert "#SBATCH --partition=cpu\n" in scripts[stage] and "gpus" not in scripts[stage]


def test_a_template_beside_the_site_file_is_used(workplace, capsys):
    site = site_file(workplace)
    (workplace / "stage.sbatch.j2").write_text("#!/bin/sh\n# {{ kind }} on {{ nodes }}\n")
    assert scripts_of(capsys, "--site", site)["math/sft"].startswith("#!/bin/sh\n# sft on 8")
