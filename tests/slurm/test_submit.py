"""What submit would hand to SLURM, and what it refuses, without a SLURM."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.names import slots
from megatron_bar.cli import main
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE
from megatron_bar.launch.slurm.attempts import begin_attempt, end_attempt, read_attempts
from megatron_bar.launch.slurm.failed_nodes import note_failed
from megatron_bar.launch.slurm.jobs import Job
from megatron_bar.launch.slurm.site import TEMPLATES, Site
from megatron_bar.launch.slurm.submit import still_good
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.rlvr.backends import warn_once
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json
from megatron_bar.runtime.stopping import CONTINUE_LATER
from megatron_bar.stages.provenance import record
from megatron_bar.stages.stage import Stage

BAR_7B = Path(__file__).parents[2] / "examples" / "bar-7b.yaml"
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
_RLVR = "{{data: [{{path: data.jsonl, verifier: math}}], steps: 3, rollout_python: p, {}}}"
_DATA = [{"path": "data.jsonl"}]
_TRAINING = {"data": _DATA, "steps": 100, "global_batch_size": 128, "dtype": "bfloat16"}


def _hollow_weights(folder: Path, model: ModelConfig) -> None:
    """A safetensors file of the model's tensors, with holes for their bytes."""
    header, end = {}, 0
    for slot in slots(model):
        for name, shape in zip(slot.hf_names, slot.hf_shapes):
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, path.stat().st_size + end)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the 7B's configuration in it, and a recipe for 64 GPUs."""
    anchor = tmp_path / "OLMo-2-1124-7B-Instruct"
    anchor.mkdir()
    model = PRESETS["olmo2-7b"]
    write_json(anchor / "config.json", hf.hf_config(model, "bfloat16", {"pad_token_id": None}))
    recipe = {
        "name": "bar-7b",
        "anchor": anchor.name,
        "layout": {"processes": 64, "expert": 2},
        "domains": {
            "math": {"midtrain": _TRAINING, "sft": _TRAINING},
            "safety": {"sft": {**_TRAINING, "layout": {"processes": 4, "expert": 2}}},
        },
        "route": {
            "training": {
                "steps": 66,
                "global_batch_size": 648,
                "dtype": "bfloat16",
                "layout": {"processes": 24, "expert": 3},
            }
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _site(folder: Path, **changes) -> str:
    site = yaml.safe_load((TEMPLATES / "site.yaml").read_text())
    (folder / "site.yaml").write_text(yaml.safe_dump(site | {"python": "python"} | changes))
    return str(folder / "site.yaml")


def _scripts(capsys, *arguments: str, recipe: str = "recipe.yaml") -> dict[str, str]:
    assert main(["submit", recipe, "--dry-run", *arguments]) == 0
    parts = capsys.readouterr().out.split("===== ")[1:]
    return dict(part.split("\n", 1) for part in parts)


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
    scripts = _scripts(
        capsys,
        *("--site", _site(workplace, **changes), *chosen, *models, *overrides),
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
    script = _scripts(capsys, "--only", "math/rlvr", *models, *_ON_NODES, recipe=str(BAR_7B))
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
    _fake_commands(tmp_path / "bin", {"srun": srun, "scontrol": scontrol}, monkeypatch)
    done = subprocess.run(
        ["bash"],
        input=script["math/rlvr"],
        text=True,
        capture_output=True,
        timeout=30,
        env=os.environ | {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n1"},
    )
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
    ):
        site = _site(workplace, container=container, modules=["cuda/12"], setup=["echo ${HOME}"])
        for script in _scripts(capsys, "--site", site).values():
            assert "\necho ${HOME}\n" in script
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("asks", [None, "STOP", "math/sft/STOP"])
def test_a_job_that_saved_is_queued_again_unless_a_stop_file_asks_it_to_stop(
    asks, workplace, capsys, tmp_path, monkeypatch
):
    """The script itself runs, among commands that do what SLURM's do at that moment."""
    script = _scripts(capsys, "--only", "math/sft")["math/sft"]
    calls = tmp_path / "calls"
    commands = {
        "srun": "exit 75",
        "squeue": "echo RUNNING",
        "sleep": "",
        "scontrol": f'echo "$*" >> {calls}\necho NodeAddr=127.0.0.1',
    }
    _fake_commands(tmp_path / "bin", commands, monkeypatch)
    if asks is not None:
        (workplace / "runs" / "bar-7b" / asks).parent.mkdir(parents=True)
        (workplace / "runs" / "bar-7b" / asks).touch()
    ended = subprocess.run(
        ["bash"],
        input=script,
        text=True,
        capture_output=True,
        timeout=30,
        env=os.environ | {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n1"},
    )
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
    script = _scripts(capsys, "--only", "math/sft")["math/sft"]
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
    _fake_commands(tmp_path / "bin", commands, monkeypatch)
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": allocated}
    ended = subprocess.run(
        ["bash"],
        input=script,
        text=True,
        capture_output=True,
        timeout=30,
        env=os.environ | job,
    )
    said = calls.read_text().splitlines()
    assert "requeue 7" in said, ended.stderr
    updates = [line for line in said if line.startswith("update ")]
    assert set(updates) == ({f"update JobId=7 ExcNodeList={excluded}"} if excluded else set())
    # Where it has such a node it is queued again before anything starts.
    assert ("srun" in said) == (excluded != "n1,n9")


def test_scripts_leave_out_nodes_that_failed_twice(workplace, capsys):
    site = _site(workplace, gpu_nodes={"options": ["--exclude=n7", "--qos=high"]})
    run = workplace / "runs" / "bar-7b"
    (run / "slurm").mkdir(parents=True)
    for hosts in (["n1"], ["n2", "n1"]):
        note_failed(run, hosts, "math/sft: they gave no sign of life any more")
    script = _scripts(capsys, "--site", site, "--only", "math/sft")["math/sft"]
    assert "#SBATCH --exclude=n7,n1\n" in script and script.count("--exclude") == 1
    assert "#SBATCH --qos=high\n" in script
    failed = run / "slurm" / "failed-nodes.txt"
    failed.write_text("\n".join(failed.read_text().splitlines()[1:]))
    assert (
        "#SBATCH --exclude=n7\n"
        in _scripts(capsys, "--site", site, "--only", "math/sft")["math/sft"]
    )


@pytest.fixture
def other(workplace) -> Path:
    """A finished run of the same recipe, as far as the stages' own files tell."""
    run = workplace / "runs" / "other"
    for stage in stage_graph(load_recipe(workplace / "recipe.yaml")):
        (run / stage.name).mkdir(parents=True)
        write_json(
            run / stage.name / "stage.json",
            {
                "id": stage.name,
                **record(stage),
                "inputs": {
                    role: {"stage": name, "id": name} for role, name in stage.inputs.items()
                },
            },
        )
    (run / "recipe.yaml").write_text((workplace / "recipe.yaml").read_text())
    return run


@pytest.mark.slow
def test_scripts_are_for_what_no_reused_run_has(workplace, other, capsys):
    changed = ["domains.safety.sft.lr=1e-3", "evaluate.max_new_tokens=99"]
    reuse = "reuse=[runs/other]"
    whole = set(_scripts(capsys, *changed))
    assert {"anchor", "math/branch", "math/sft", "evaluate/math"} < whole
    expected = {
        "safety/sft",
        "merged",
        "routed",
        "hf",
        "report",
        *(name for name in whole if name.startswith("evaluate/")),
    }
    assert set(_scripts(capsys, reuse, *changed)) == expected
    assert set(_scripts(capsys, reuse, *changed, "--only", "safety")) == {
        "safety/sft",
        "evaluate/safety",
    }
    assert [path.name for path in other.parent.iterdir()] == ["other"]
    assert main(["submit", "recipe.yaml", reuse, *changed, "--write"]) == 0
    run = other.parent / "bar-7b"
    assert {path.stem for path in (run / "slurm").glob("*.sbatch")} == {
        name.replace("/", "-") for name in expected
    }
    assert (run / "math" / "sft" / "stage.json").samefile(other / "math" / "sft" / "stage.json")
    assert main(["submit", "recipe.yaml", "reuse=[runs/none]", "--dry-run"]) == 1
    expected = f"reuse: {workplace / 'runs/none'} is not the folder of a run"
    assert expected in capsys.readouterr().err


@pytest.fixture
def brought(workplace, anchor) -> str:
    """An override that names a model with its weights; the recipe's data are there too."""
    record = {
        "text": "One and one is two.",
        "answer": "2",
        "messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}],
    }
    for name in ("data.jsonl", "prompts.jsonl"):
        (workplace / name).write_text(json.dumps(record) + "\n")
    return f"anchor={anchor}"


@pytest.mark.slow
def test_a_dry_run_needs_nothing_that_only_the_jobs_need(workplace, brought, capsys, monkeypatch):
    rlvr = (
        "domains.math.rlvr={data: [{path: prompts.jsonl, verifier: math}], steps: 3, "
        "layout: {processes: 8, expert: 2}, backend: nemo_aligner}"
    )
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in ("nemo_aligner", "wandb") else find_spec(name, *more),
    )
    recipe = [brought, rlvr, "route.training.wandb=my-project"]
    assert "math/rlvr" in _scripts(capsys, *recipe)
    command = ["submit", "recipe.yaml", *recipe, "--site"]
    assert main([*command, _site(workplace, python=None)]) == 1
    assert "math/rlvr: NeMo-Aligner is missing" in capsys.readouterr().err
    assert main([*command[:3], recipe[2], "--site", _site(workplace, python=None)]) == 1
    assert "routed: wandb is asked for and not installed" in capsys.readouterr().err
    # What another Python has can't be known here.
    monkeypatch.setenv("PATH", str(workplace))
    assert main([*command, _site(workplace, python="/shared/venv/bin/python")]) == 1
    assert "sbatch isn't here" in capsys.readouterr().err
    # A recipe that names no backend gets one that is there.
    warn_once.cache_clear()
    recipe[1] = rlvr.replace(", backend: nemo_aligner", "")
    assert main([*command[:2], *recipe[:2], "--site", _site(workplace, python=None)]) == 1
    shown = capsys.readouterr().err
    assert (
        "NeMo-Aligner is missing; install it with: pip install "
        "'megatron-bar[nemo-aligner]'; the native backend takes RLVR's steps, the same ones\n"
    ) in shown
    assert "sbatch isn't here" in shown and "math/rlvr" not in shown


@pytest.mark.slow
def test_a_rehearsal_is_a_job_that_all_others_wait_for(workplace, capsys, tmp_path, monkeypatch):
    scripts = _scripts(capsys, "--rehearse", "--only", "math")
    assert next(iter(scripts)) == "rehearsal" and len(scripts) == 5
    script = scripts["rehearsal"]
    assert ' rehearse "$run/recipe.yaml" --processes 8 --keep "$run/$stage"' in script
    assert "#SBATCH --nodes=1\n" in script and "#SBATCH --gpus-per-node=8\n" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    _fake_slurm(tmp_path / "bin", monkeypatch)
    anchor = workplace / "OLMo-2-1124-7B-Instruct"
    _hollow_weights(anchor, PRESETS["olmo2-7b"])  # which a real submit asks for, as the rest
    train_tokenizer(["word"], 320, anchor, CHAT_TEMPLATE)
    command = ["submit", "recipe.yaml", "--rehearse", "--site", _site(workplace)]
    assert main([*command, "--only", "anchor"]) == 0
    assert main([*command, "--only", "anchor", "--only", "math/branch"]) == 0
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert [line.rpartition("/")[2] for line in calls] == [
        "rehearsal.sbatch",
        "anchor.sbatch",
        "evaluate-anchor.sbatch",
        "math-branch.sbatch",
    ]
    assert "--dependency" not in calls[0] and "--dependency=afterok:1 " in calls[1]
    assert all("--dependency=afterok:1:2 " in line for line in calls[2:])
    capsys.readouterr()
    assert main(["status", "runs/bar-7b"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["rehearsal", "1", "pending"]
    assert main(["cancel", "runs/bar-7b"]) == 0
    assert "cancelled: rehearsal, anchor, evaluate/anchor, math/branch" in capsys.readouterr().out


def test_no_more_jobs_than_the_site_allows_may_start_at_once(
    workplace, brought, capsys, tmp_path, monkeypatch
):
    _fake_slurm(tmp_path / "bin", monkeypatch)
    command = ["submit", "recipe.yaml", brought, "--site", _site(workplace, max_jobs=3), "--only"]
    assert main([*command, "*/branch"]) == 1  # the anchor is neither done nor queued
    assert main([*command, "anchor", "--only", "*/branch"]) == 0
    assert main([*command, "anchor", "--only", "math", "--only", "safety"]) == 0
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    conditions = [
        next((word for word in line.split() if word.startswith("--dependency=")), "")
        for line in calls
    ]
    after_any = [of.partition("afterany:")[2] for of in conditions]
    assert after_any == ["", "", "", *(str(job) for job in range(1, len(calls) - 2))]
    # What a stage needs is asked for beside that.
    assert all("afterok:" in of for of in conditions[1:])


def test_conversions_of_every_method_are_for_cpu_nodes():
    assert set(Site().cpu_stages) == {
        *("import", "branch", "adopt", "merge", "average", "stack", "export", "report")
    }


def test_a_stage_that_fills_its_nodes_has_them_for_itself(workplace, capsys):
    site = _site(workplace, network="ib0")
    scripts = _scripts(capsys, "--site", site)
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


def _fake_slurm(folder: Path, monkeypatch) -> None:
    """sbatch numbers its jobs and writes down what it is told; they wait for ever."""
    folder.mkdir()
    commands = {
        "sbatch": f'echo "$*" >> {folder}/calls\nwc -l < {folder}/calls | tr -d " "\n',
        "squeue": f"for job in $(seq $(wc -l < {folder}/calls)); do "
        'echo "$job|PENDING|None|0:00"; done\n',
        "scancel": "",
    }
    _fake_commands(folder, commands, monkeypatch)


def _fake_commands(folder: Path, commands: dict[str, str], monkeypatch) -> None:
    """Put shell scripts before the commands of their names."""
    folder.mkdir(exist_ok=True)
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_only_and_from_choose_stages(workplace, capsys):
    everything = _scripts(capsys)
    assert len(everything) == 15
    assert list(_scripts(capsys, "--only", "math")) == [
        "math/branch",
        "math/midtrain",
        "math/sft",
        "evaluate/math",
    ]
    assert list(_scripts(capsys, "--only", "*/branch", "--only", "hf")) == [
        "math/branch",
        "safety/branch",
        "hf",
    ]
    assert list(_scripts(capsys, "--from", "routed")) == [
        "routed",
        "hf",
        "evaluate/routed",
        "report",
    ]


def test_names_of_a_site_that_are_known_are_taken(workplace, capsys):
    times = {"math/sft": "90", "midtrain": "91", "rehearsal": "92", "pretrain": "93"}
    site = _site(workplace, times=times, cpu_stages=["import", "adopt", "average"])
    scripts = _scripts(capsys, "--site", site, "--only", "math", "--rehearse")
    for stage, minutes in (("math/sft", 90), ("math/midtrain", 91), ("rehearsal", 92)):
        assert f"#SBATCH --time={minutes}\n" in scripts[stage]


def test_that_there_is_nothing_to_print_is_reported(workplace, capsys):
    anchor = next(
        stage for stage in stage_graph(load_recipe(Path("recipe.yaml"))) if stage.name == "anchor"
    )
    folder = workplace / "runs" / "bar-7b" / "anchor"
    folder.mkdir(parents=True)
    write_json(folder / "stage.json", record(anchor) | {"id": "x", "inputs": {}})
    assert main(["submit", "recipe.yaml", "--dry-run", "--only", "anch*"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "nothing to do, all stages that are asked for are done" in shown.err


def test_conversions_ask_for_cpu_nodes_and_training_for_gpu_nodes(workplace, capsys):
    scripts = _scripts(capsys)
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
    site = _site(workplace)
    (workplace / "stage.sbatch.j2").write_text("#!/bin/sh\n# {{ kind }} on {{ nodes }}\n")
    assert _scripts(capsys, "--site", site)["math/sft"].startswith("#!/bin/sh\n# sft on 8")


@pytest.mark.parametrize(
    "arguments, changes, message",
    [
        (["--from", "nothing"], {}, "there is no such stage"),
        (["--only", "nothing"], {}, "no stage or domain is called so"),
        ([], {"gpu_nodes": {"ranks": 3}}, "can't be spread over nodes of 3"),
        (
            ["domains.math.rlvr=" + _RLVR.format("rollout_nodes: 1, rollout_options: [-tp, '3']")],
            {},
            "math/rlvr: rollout_nodes: servers of 3 GPUs, as rollout_options says, don't fill a",
        ),
        (
            ["domains.math.rlvr=" + _RLVR.format("rollout_nodes: 1, rollout_options: [-tp, x]")],
            {},
            "math/rlvr: rollout_options: argument -tp/--tensor-parallel-size",
        ),
        (
            [
                "domains.math.rlvr="
                + _RLVR.format("rollout_nodes: 1, layout: {processes: 4, expert: 2}")
            ],
            {},
            "math/rlvr: rollout_nodes adds whole nodes, and 4 processes don't fill one of 8 ranks",
        ),
        (["name=a\\b"], {}, "can't take a backslash"),
        ([], {"environment": {"WANDB_API_KEY": "x"}}, "list its name under secrets"),
        ([], {"environment": {"a-b": "x"}}, "is not a variable's name"),
        ([], {"acount": "x"}, "acount"),
        ([], {"times": {"sft": "soon"}}, "is not a time as SLURM has it"),
        (
            [],
            {"times": {"midtran": "12:00:00"}},
            "the site's times: 'midtran' is not a kind of stage "
            "or a stage of this recipe; did you mean midtrain?",
        ),
        ([], {"times": {"mth/sft": "12:00:00"}}, "did you mean math/sft?"),
        (
            [],
            {"cpu_stages": ["imprt"]},
            "the site's cpu_stages: 'imprt' is not a kind of stage; did you mean import?",
        ),
        (
            ["--from", "merged", "--only", "math"],
            {},
            "--only math chooses none of the stages from merged on",
        ),
        ([], {"health_check": "maybe"}, "'maybe' is not one of off, warn, refuse"),
        ([], {"max_jobs": 0}, "max_jobs 0 is not 1 or more"),
        ([], {"network": "ib 0"}, "network 'ib 0' is not an interface's name"),
        ([], {"container": {"runtime": "docker"}}, "is not none, pyxis or apptainer"),
        ([], {"container": {"runtime": "pyxis"}}, "container.image is missing"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(arguments, changes, message, workplace, capsys):
    site = _site(workplace, **changes)
    assert main(["submit", "recipe.yaml", "--dry-run", "--site", site, *arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.strip().splitlines()) == 1
    assert not (workplace / "runs").exists()


def test_a_missing_secret_and_a_missing_slurm_are_reported(workplace, brought, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(workplace))
    monkeypatch.delenv("MY_TOKEN", raising=False)
    command = ["submit", "recipe.yaml", brought, "--site", _site(workplace, secrets=["MY_TOKEN"])]
    assert main(command) == 1
    assert "secrets MY_TOKEN are not set" in capsys.readouterr().err
    assert not (workplace / "runs").exists()
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    assert main(command) == 1
    assert "sbatch isn't here; submit from a login node" in capsys.readouterr().err
    assert "hunter2" not in "".join(
        path.read_text() for path in (workplace / "runs").rglob("*") if path.is_file()
    )


def test_scripts_are_written_to_be_submitted_by_hand(workplace, capsys):
    assert main(["submit", "recipe.yaml", "--write", "--only", "math"]) == 0
    assert "4 scripts; submit each with sbatch" in capsys.readouterr().out
    run = workplace / "runs" / "bar-7b"
    printed = _scripts(capsys, "--only", "math")
    written = {path.name: path.read_text() for path in (run / "slurm").iterdir()}
    assert written == {
        f"{stage.replace('/', '-')}.sbatch": text.removesuffix("\n")
        for stage, text in printed.items()
    }
    assert (run / "recipe.yaml").is_file() and (run / "logs").is_dir()


def test_jobs_that_wait_for_one_that_is_gone_are_queued_again():
    stages = [Stage("a"), Stage("b", {"anchor": "a"}), Stage("c", {"start": "b"}), Stage("d")]
    jobs = {name: Job(f"job {name}", "", 0.0) for name in "abcd"}
    todo = set(jobs)
    assert still_good(stages, jobs, todo) == (jobs, [])
    without_a = {name: jobs[name] for name in "bcd"}
    assert still_good(stages, without_a, todo) == ({"d": jobs["d"]}, [jobs["b"], jobs["c"]])
    assert still_good(stages, without_a, todo - {"a"}) == (without_a, [])


def test_status_and_cancel_need_a_run(tmp_path, capsys):
    for command in ("status", "cancel"):
        assert main([command, str(tmp_path)]) == 1
        assert "is not a run's folder" in capsys.readouterr().err


def test_the_third_beginning_at_one_step_is_refused(tmp_path, monkeypatch):
    (tmp_path / "slurm").mkdir()
    saved = tmp_path / "math" / "sft" / "resume"

    def begin(job: str, restart: int) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        begin_attempt(tmp_path, "math/sft")

    begin("1", 0)
    begin("1", 1)
    with pytest.raises(BarError, match="two attempts in a row made no progress, both began at"):
        begin("1", 2)
    begin("2", 0)
    begin("2", 1)
    (saved / "40").mkdir(parents=True)
    begin("2", 2)
    begin("2", 3)
    with pytest.raises(BarError, match="step 40"):
        begin("2", 4)
    for _ in range(2):
        note_failed(tmp_path, ["n1"], "math/sft: rank 3 was ended by SIGKILL")
    begin("2", 4)  # without n1
    end_attempt(tmp_path, "math/sft", "rank 3 was ended by SIGKILL")
    begin("2", 5)
    assert [of.get("failure") for of in read_attempts(tmp_path, "math/sft", "2")][4:] == [
        "rank 3 was ended by SIGKILL",
        None,
    ]
    with pytest.raises(BarError, match="step 40"):
        begin("2", 6)
    for restart, host in ((6, "n2"), (8, "n3")):
        for _ in range(2):
            note_failed(tmp_path, [host], "math/sft: rank 3 was ended by SIGKILL")
        if restart == 6:
            begin("2", 6)
    with pytest.raises(BarError, match="five attempts made no progress, all began at step 40"):
        begin("2", 7)
