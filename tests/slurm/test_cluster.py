"""Whole runs through a real SLURM: what is submitted ends as a local run would, come what may."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.launch import processes
from megatron_bar.launch.slurm.jobs import read_jobs
from megatron_bar.methods.run import run_stage
from megatron_bar.runtime.files import file_digest
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.slurm.cluster import GPUS, Cluster, wait_until
from tests.slurm.conftest import recipe_of, write_site

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

ODD_NAME = """it's a "run" $HOME 100%"""


def _write(folder: Path, recipe: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _job(run: Path, stage: str) -> str:
    return read_jobs(run)[stage].id


def _state(slurm: Cluster, job: str) -> str:
    return slurm.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T")


def _log(run: Path, stage: str) -> str:
    path = run / "logs" / f"{stage.replace('/', '-')}.txt"
    return path.read_text() if path.is_file() else ""


def _attempts(run: Path, stage: str) -> list[dict]:
    path = run / "slurm" / f"{stage.replace('/', '-')}.attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _all_ended(slurm: Cluster, seconds: float = 600) -> None:
    wait_until("all jobs ended", lambda: not slurm.jobs(), seconds)


@pytest.fixture(scope="module")
def local(anchor, tmp_path_factory) -> Path:
    """The run folder that `megatron-bar run` makes of the recipe."""
    folder = tmp_path_factory.mktemp("local")
    recipe = _write(folder, recipe_of(anchor, folder / "runs", "local"))
    assert main(["run", str(recipe)]) == 0
    return folder / "runs" / "local"


def _exported(run: Path) -> dict[str, str]:
    """Digests of the exported files, but the model card, which tells the run's name, and what
    lists them."""
    return {
        path.name: file_digest(path)
        for path in (run / "hf" / "model").iterdir()
        if path.name not in ("README.md", "manifest.json")
    }


def test_a_submitted_recipe_over_two_nodes_equals_a_local_run(
    on_cluster, local, anchor, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    folder = tmp_path / "a folder's"
    folder.mkdir()
    recipe = _write(folder, recipe_of(anchor, folder / "runs", ODD_NAME))
    run = folder / "runs" / ODD_NAME
    site = write_site(folder, secrets=["MY_SECRET"], setup=["[ ${#MY_SECRET} = 7 ] || exit 9"])
    command = ["submit", str(recipe), "--site", str(site)]
    assert main([*command, "--write"]) == 0
    on_cluster.run("sbatch", str(run / "slurm" / "anchor.sbatch"))  # by hand; all others need it
    _all_ended(on_cluster)
    assert main(command) == 0
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "13 jobs are queued, 0 were already" in shown
    assert "0 jobs are queued, 13 were already" in shown
    assert main(["run", str(recipe)]) == 1
    assert "active SLURM jobs, such as" in capsys.readouterr().err
    _all_ended(on_cluster)
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("done in") == 14, shown + _log(run, "anchor") + _log(run, "math/sft")
    for stage in ("math/sft", "routed"):
        assert group_digests(run / stage / "checkpoint") == group_digests(
            local / stage / "checkpoint"
        )
    assert _exported(run) == _exported(local)
    assert "on n[1-2]" in _log(run, "math/sft")
    for text in [*(run / "slurm").iterdir(), *(run / "logs").iterdir()]:
        assert "hunter2" not in text.read_text()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_jobs_see_the_gpus_that_they_asked_for(on_cluster, anchor, tmp_path):
    """What stands for Python tells what a node's one task was given; nothing is trained."""
    told = tmp_path / "told"
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho $SLURM_JOB_NUM_NODES $SLURM_GPUS_ON_NODE $CUDA_VISIBLE_DEVICES "
        f"$PYTORCH_CUDA_ALLOC_CONF >> {told}\nsleep 3\n"
    )
    python.chmod(0o755)
    nodes = {"partition": "all", "ranks": GPUS, "gpus": True, "cpus": 2, "time": "10"}
    site = write_site(tmp_path, gpu_nodes=nodes, python=str(python))
    recipe = recipe_of(anchor, tmp_path / "runs", "gpus")
    recipe["domains"]["math"]["sft"]["layout"] = {"processes": 2 * GPUS, "expert": 2}
    recipe["domains"]["math"]["sft"]["global_batch_size"] = 2 * GPUS
    command = ["submit", str(_write(tmp_path, recipe)), "--site", str(site), "--write"]
    assert main([*command, "--only", "math/sft", "--only", "safety/sft"]) == 0
    scripts = tmp_path / "runs" / "gpus" / "slurm"
    for options, stage in (
        ([], "math-sft"),  # all GPUs of both nodes
        (["--nodelist=n2"], "safety-sft"),
        (["--nodelist=n2"], "safety-sft"),  # beside each other
    ):
        on_cluster.run("sbatch", *options, str(scripts / f"{stage}.sbatch"))
    _all_ended(on_cluster, 60)
    run = tmp_path / "runs" / "gpus"
    assert told.is_file(), _log(run, "math/sft") + _log(run, "safety/sft")
    alloc = "expandable_segments:True"
    assert sorted(told.read_text().splitlines()) == [
        f"1 1 0 {alloc}",
        f"1 1 1 {alloc}",
        *[f"2 2 0,1 {alloc}"] * 2,
    ]


def _copy_stages(local: Path, run: Path, *stages: str) -> None:
    """Stages that don't depend on what a test changes stand already."""
    for stage in stages:
        shutil.copytree(local / stage, run / stage)


@pytest.fixture
def paced(tmp_path, monkeypatch) -> Path:
    """While this file stands, training takes a second a step: time to disturb it."""
    folder = Path(__file__).parent / "paced"
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ['PYTHONPATH']}")
    monkeypatch.setenv("PACED_WHILE", str(tmp_path / "paced"))
    (tmp_path / "paced").touch()
    return tmp_path / "paced"


def _begun(run: Path, stage: str, attempts: int) -> None:
    wait_until(
        f"attempt {attempts} of {stage}", lambda: len(_attempts(run, stage)) >= attempts, 400
    )


def _trained(run: Path, stage: str, steps: int) -> None:
    """Wait for `steps` steps more than the stage's last attempt began with."""
    first = _attempts(run, stage)[-1]["step"]
    wait_until(
        f"{steps} steps of {stage}",
        lambda: any(m["step"] >= first + steps for m in read_metrics(run / stage)),
        120,
    )


def test_a_stage_survives_its_time_limit_a_preemption_and_the_loss_of_a_node(
    on_cluster, paced, local, anchor, tmp_path, capsys
):
    recipe = recipe_of(anchor, tmp_path / "runs", "survives")
    recipe["domains"]["math"]["sft"] |= {"steps": 80, "save_every": 5}
    run = tmp_path / "runs" / "survives"
    _copy_stages(local, run, "anchor", "math/branch")
    command = ["submit", str(_write(tmp_path, recipe)), "--site", str(write_site(tmp_path))]
    assert main([*command, "--only", "math/sft"]) == 0
    job = _job(run, "math/sft")

    _begun(run, "math/sft", 1)
    _trained(run, "math/sft", 2)
    # SLURM looks every 30 s which warnings are due in the next 30, and this one is 30 s before the
    # end: it comes at the next look, and the end no sooner than 20 s later.
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 50))
    on_cluster.run("scontrol", "update", f"JobId={job}", f"EndTime={end}")
    # Meanwhile; the file slows down jobs alone.
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(run, undisturbed, ignore=shutil.ignore_patterns("sft"))
    reference = processes.start(run_stage, undisturbed, "math/sft", processes=2)
    _begun(run, "math/sft", 2)
    assert "the time limit is near" in _log(run, "math/sft")
    on_cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")

    _trained(run, "math/sft", 2)
    assert main(["status", str(run)]) == 0
    assert re.search(
        rf"^ math/sft +{job} +running, attempt 2 +math/sft \d+/80 loss \d\.\d+ +0:0\d:\d\d"
        r" +logs/math-sft.txt",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    on_cluster.preempt_all()
    _begun(run, "math/sft", 3)
    assert _log(run, "math/sft").count(f"saved; job {job} is queued again") == 2

    _trained(run, "math/sft", 6)
    on_cluster.kill_node("n2")
    wait_until("the lost node is noticed", lambda: _state(on_cluster, job) != "RUNNING", 120)
    on_cluster.start_node("n2")
    _begun(run, "math/sft", 4)

    paced.unlink()
    _all_ended(on_cluster)
    begun_at = [attempt["step"] for attempt in _attempts(run, "math/sft")]
    assert 0 == begun_at[0] < begun_at[1] < begun_at[2] < begun_at[3], _log(run, "math/sft")

    reference.wait()
    assert group_digests(run / "math/sft" / "checkpoint") == group_digests(
        undisturbed / "math/sft" / "checkpoint"
    )


def test_a_killed_rank_ends_its_job_at_once_and_its_node_is_left_out_the_second_time(
    on_cluster, paced, local, anchor, tmp_path, capsys
):
    recipe = recipe_of(anchor, tmp_path / "runs", "killed")
    recipe["domains"]["math"]["sft"] |= {"steps": 40, "save_every": 1}
    run = tmp_path / "runs" / "killed"
    _copy_stages(local, run, "anchor", "math/branch")
    command = ["submit", str(_write(tmp_path, recipe)), "--site", str(write_site(tmp_path))]
    assert main([*command, "--only", "math/sft"]) == 0
    job = _job(run, "math/sft")
    for attempt in (1, 2):
        _begun(run, "math/sft", attempt)
        _trained(run, "math/sft", 2)
        of_job = on_cluster.processes_with(f"SLURM_JOB_ID={job}")
        for pid in of_job & on_cluster.processes_with("RANK=1"):
            os.kill(pid, signal.SIGKILL)
        # A job that is queued again first completes.
        wait_until("the job to end", lambda: _state(on_cluster, job) != "RUNNING", 15)
        assert _log(run, "math/sft").count("math/sft: rank 1 on n2 was ended by SIGKILL") >= attempt
    assert main(["status", str(run)]) == 0
    assert "rank 1 on n2 was ended by SIGKILL" in capsys.readouterr().out
    assert [line.split()[0] for line in _failed_nodes(run)] == ["n2", "n2"]
    # Two nodes are needed, and one of the two is left out.
    wait_until("n2 to be left out", lambda: "ExcNodeList=n2" in _shown(on_cluster, job), 15)
    time.sleep(8)  # longer than a job that was queued again waits here
    assert len(_attempts(run, "math/sft")) == 2
    on_cluster.run("scontrol", "update", f"JobId={job}", "ExcNodeList=")
    (run / "slurm" / "failed-nodes.txt").unlink()
    paced.unlink()
    _all_ended(on_cluster)
    assert read_done(run / "math/sft"), _log(run, "math/sft")


def _failed_nodes(run: Path) -> list[str]:
    return (run / "slurm" / "failed-nodes.txt").read_text().splitlines()


def _shown(slurm: Cluster, job: str) -> str:
    return slurm.run("scontrol", "show", "job", job)


def test_cancelled_and_vain_stages_stop_what_needs_them_and_nothing_else(
    on_cluster, paced, local, anchor, tmp_path, capsys
):
    recipe = recipe_of(anchor, tmp_path / "runs", "ends")
    recipe["domains"]["math"]["sft"] |= {"steps": 400}
    command = ["submit", str(_write(tmp_path, recipe)), "--site", str(write_site(tmp_path))]
    run = tmp_path / "runs" / "ends"
    _copy_stages(local, run, "anchor", "math/branch", "safety/branch", "evaluate/anchor")
    assert main(command) == 0
    first = read_jobs(run)
    _begun(run, "math/sft", 1)
    assert main(["cancel", str(run), "--only", "math"]) == 0
    assert "cancelled: math/sft, evaluate/math" in capsys.readouterr().out
    wait_until(
        "what needs it to be cancelled",
        lambda: _state(on_cluster, first["merged"].id) == "CANCELLED",
        60,
    )

    assert main(command) == 0  # while the rest goes on
    second = read_jobs(run)
    assert {stage for stage in second if second[stage] != first[stage]} == {
        "math/sft",
        "merged",
        "routed",
        "hf",
        "evaluate/math",
        "evaluate/merged",
        "evaluate/routed",
        "report",
    }
    for attempt in (1, 2):
        _begun(run, "math/sft", attempt + 1)
        on_cluster.run("scontrol", "requeue", second["math/sft"].id)
    wait_until(
        "a third vain attempt to be refused",
        lambda: _state(on_cluster, second["math/sft"].id) == "FAILED",
        400,
    )
    assert "two attempts in a row made no progress, both began at step 0" in _log(run, "math/sft")
    wait_until(
        "its dependents to be cancelled, and the rest to end",
        lambda: not on_cluster.jobs(),
        400,
    )
    assert read_done(run / "safety/sft") and read_done(run / "evaluate/safety")
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "failed (NonZeroExitCode)" in shown and "cancelled" in shown


def _needs_podman(folder: Path) -> list[str]:
    """Options of `podman run` by which it has this machine's files; skips where it can't run."""
    if shutil.which("podman") is None:
        pytest.skip("podman isn't installed (apt-get install podman runc)")
    # Its own limits are higher than what some machines let anybody have.
    limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]
    for runtime in ([], ["--runtime=runc"]):
        options = [*runtime, *limits, "--rootfs"]
        tried = subprocess.run(
            ["podman", "run", "--rm", "--network=host", "--ipc=host", *options, "/:O", "true"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if tried.returncode == 0:
            return options
    pytest.skip(f"podman can't run here: {tried.stderr.strip().splitlines()[-1]}")


def test_ranks_in_containers_hear_that_they_are_to_save_and_end_with_the_same_bits(
    on_cluster, paced, local, anchor, tmp_path
):
    """podman, whose image is this machine's files, seen through an overlay."""
    container = {
        "runtime": "podman",
        "image": "/:O",
        "mounts": [str(anchor.parent), str(tmp_path), str(Path(__file__).parents[2])],
        "options": _needs_podman(tmp_path),
    }
    site = write_site(tmp_path, container=container)
    recipe = recipe_of(anchor, tmp_path / "runs", "inside")
    recipe["domains"]["math"]["sft"] |= {"steps": 20, "save_every": 5}
    run = tmp_path / "runs" / "inside"
    _copy_stages(local, run, "anchor", "math/branch")
    command = ["submit", str(_write(tmp_path, recipe)), "--site", str(site)]
    assert main([*command, "--only", "math/sft"]) == 0
    _begun(run, "math/sft", 1)
    _trained(run, "math/sft", 2)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(run, undisturbed, ignore=shutil.ignore_patterns("sft"))
    reference = processes.start(run_stage, undisturbed, "math/sft", processes=2)
    on_cluster.preempt_all()
    _begun(run, "math/sft", 2)
    paced.unlink()
    _all_ended(on_cluster)
    assert _log(run, "math/sft").count("is queued again") == 1, _log(run, "math/sft")
    assert "on n[1-2]" in _log(run, "math/sft")
    assert [attempt["step"] > 0 for attempt in _attempts(run, "math/sft")] == [False, True]
    reference.wait()
    assert group_digests(run / "math/sft" / "checkpoint") == group_digests(
        undisturbed / "math/sft" / "checkpoint"
    )
