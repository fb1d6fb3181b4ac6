"""What submit would hand to SLURM, and what it refuses, without a SLURM."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from megatron_bar.checkpoints.names import slots
from megatron_bar.cli import main
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE
from megatron_bar.launch.slurm.attempts import begin_attempt, end_attempt, read_attempts
from megatron_bar.launch.slurm.failed_nodes import note_failed
from megatron_bar.launch.slurm.jobs import Job
from megatron_bar.launch.slurm.site import Site
from megatron_bar.launch.slurm.submit import still_good
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.rlvr.backends import warn_once
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json
from megatron_bar.stages.provenance import record
from megatron_bar.stages.stage import Stage
from tests.slurm.scripts import fake_slurm, scripts_of, site_file

_RLVR = "{{data: [{{path: data.jsonl, verifier: math}}], steps: 3, rollout_python: p, {}}}"


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
    whole = set(scripts_of(capsys, *changed))
    assert {"anchor", "math/branch", "math/sft", "evaluate/math"} < whole
    expected = {
        "safety/sft",
        "merged",
        "routed",
        "hf",
        "report",
        *(name for name in whole if name.startswith("evaluate/")),
    }
    assert set(scripts_of(capsys, reuse, *changed)) == expected
    assert set(scripts_of(capsys, reuse, *changed, "--only", "safety")) == {
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
    assert "math/rlvr" in scripts_of(capsys, *recipe)
    command = ["submit", "recipe.yaml", *recipe, "--site"]
    assert main([*command, site_file(workplace, python=None)]) == 1
    assert "math/rlvr: NeMo-Aligner is missing" in capsys.readouterr().err
    assert main([*command[:3], recipe[2], "--site", site_file(workplace, python=None)]) == 1
    assert "routed: wandb is asked for and not installed" in capsys.readouterr().err
    # What another Python has can't be known here.
    monkeypatch.setenv("PATH", str(workplace))
    assert main([*command, site_file(workplace, python="/shared/venv/bin/python")]) == 1
    assert "sbatch isn't here" in capsys.readouterr().err
    # A recipe that names no backend gets one that is there.
    warn_once.cache_clear()
    recipe[1] = rlvr.replace(", backend: nemo_aligner", "")
    assert main([*command[:2], *recipe[:2], "--site", site_file(workplace, python=None)]) == 1
    shown = capsys.readouterr().err
    assert (
        "NeMo-Aligner is missing; install it with: pip install "
        "'megatron-bar[nemo-aligner]'; the native backend takes RLVR's steps, the same ones\n"
    ) in shown
    assert "sbatch isn't here" in shown and "math/rlvr" not in shown


@pytest.mark.slow
def test_a_rehearsal_is_a_job_that_all_others_wait_for(workplace, capsys, tmp_path, monkeypatch):
    scripts = scripts_of(capsys, "--rehearse", "--only", "math")
    assert next(iter(scripts)) == "rehearsal" and len(scripts) == 5
    script = scripts["rehearsal"]
    assert ' rehearse "$run/recipe.yaml" --processes 8 --keep "$run/$stage"' in script
    assert "#SBATCH --nodes=1\n" in script and "#SBATCH --gpus-per-node=8\n" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    fake_slurm(tmp_path / "bin", monkeypatch)
    anchor = workplace / "OLMo-2-1124-7B-Instruct"
    _hollow_weights(anchor, PRESETS["olmo2-7b"])  # which a real submit asks for, as the rest
    train_tokenizer(["word"], 320, anchor, CHAT_TEMPLATE)
    command = ["submit", "recipe.yaml", "--rehearse", "--site", site_file(workplace)]
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
    fake_slurm(tmp_path / "bin", monkeypatch)
    command = [
        "submit",
        "recipe.yaml",
        brought,
        "--site",
        site_file(workplace, max_jobs=3),
        "--only",
    ]
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


def test_only_and_from_choose_stages(workplace, capsys):
    everything = scripts_of(capsys)
    assert len(everything) == 15
    assert list(scripts_of(capsys, "--only", "math")) == [
        "math/branch",
        "math/midtrain",
        "math/sft",
        "evaluate/math",
    ]
    assert list(scripts_of(capsys, "--only", "*/branch", "--only", "hf")) == [
        "math/branch",
        "safety/branch",
        "hf",
    ]
    assert list(scripts_of(capsys, "--from", "routed")) == [
        "routed",
        "hf",
        "evaluate/routed",
        "report",
    ]


def test_names_of_a_site_that_are_known_are_taken(workplace, capsys):
    times = {"math/sft": "90", "midtrain": "91", "rehearsal": "92", "pretrain": "93"}
    site = site_file(workplace, times=times, cpu_stages=["import", "adopt", "average"])
    scripts = scripts_of(capsys, "--site", site, "--only", "math", "--rehearse")
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
        ([], {"container": {"runtime": "docker"}}, "is not one of none, pyxis, apptainer, podman"),
        ([], {"container": {"runtime": "pyxis"}}, "container.image is missing"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(arguments, changes, message, workplace, capsys):
    site = site_file(workplace, **changes)
    assert main(["submit", "recipe.yaml", "--dry-run", "--site", site, *arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.strip().splitlines()) == 1
    assert not (workplace / "runs").exists()


def test_a_missing_secret_and_a_missing_slurm_are_reported(workplace, brought, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(workplace))
    monkeypatch.delenv("MY_TOKEN", raising=False)
    command = [
        "submit",
        "recipe.yaml",
        brought,
        "--site",
        site_file(workplace, secrets=["MY_TOKEN"]),
    ]
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
    printed = scripts_of(capsys, "--only", "math")
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
