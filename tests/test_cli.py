"""The command line as a user meets it: what it says, how it exits, what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import megatron_bar
from megatron_bar.checkpoints import parity, verify
from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.cli import main
from megatron_bar.launch import processes
from megatron_bar.methods.load import load_recipe, save_recipe
from tests.models_hf import TALKING, random_dense, random_experts, random_olmo3, talking

TOY = Path(__file__).parents[1] / "examples" / "toy.yaml"


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "hf"
    random_dense().save_pretrained(folder)
    return folder


def test_help_teaches(capsys):
    for arguments in (["--help"], ["run", "--help"], ["merge", "--help"], ["verify", "--help"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 0
    shown = capsys.readouterr().out
    assert "examples/toy.yaml" in shown and "seed=1" in shown and "mean" in shown


def test_the_commands_in_a_row(hf_dir, tmp_path, capsys):
    out = {
        name: str(tmp_path / name) for name in ("anchor", "math", "code", "merged", "smaller", "hf")
    }
    assert main(["import", str(hf_dir), out["anchor"]]) == 0
    for name in ("math", "code"):
        assert (
            main(
                [
                    "branch",
                    "--anchor",
                    out["anchor"],
                    "--pretrained",
                    out["anchor"],
                    "--name",
                    name,
                    "--out",
                    out[name],
                ]
            )
            == 0
        )
    assert (
        main(["merge", "--anchor", out["anchor"], "--out", out["merged"], out["math"], out["code"]])
        == 0
    )
    assert "experts anchor, math, code" in capsys.readouterr().out
    assert main(["merge", out["merged"], "--experts", "anchor,code", "--out", out["smaller"]]) == 0
    assert "experts anchor, code" in capsys.readouterr().out
    assert main(["export", out["merged"], out["hf"]]) == 0
    assert main(["verify", out["merged"], out["hf"]]) == 0
    assert "equal within 1e-05" in capsys.readouterr().out


def test_verify_without_transformers(hf_dir, tmp_path, capsys):
    checkpoint, other = str(tmp_path / "checkpoint"), tmp_path / "other"
    assert main(["import", str(hf_dir), checkpoint, "--dtype", "bfloat16"]) == 0
    assert main(["export", checkpoint, str(other), "--max-shard-size", "100KB"]) == 0
    assert len(list(other.glob("*.safetensors"))) > 1
    capsys.readouterr()
    for folder in (checkpoint, str(other)):
        assert main(["verify", folder]) == 0
        assert "are what manifest.json says" in capsys.readouterr().out
    assert main(["verify", checkpoint, str(other), "--tensors"]) == 0
    assert "all 47 tensors are equal" in capsys.readouterr().out
    assert main(["verify", checkpoint, str(hf_dir), "--tensors"]) == 1
    # rounded to bf16, no tensor is what it was
    assert "differ in 47 of 47 tensors: first" in capsys.readouterr().err


def test_verify_proves_gradients_and_names_the_first_that_differs(
    hf_dir, tmp_path, capsys, monkeypatch
):
    import_hf(hf_dir, tmp_path / "checkpoint")
    command = ["verify", str(tmp_path / "checkpoint"), str(hf_dir), "--gradients"]
    assert main(command) == 0
    assert "gradients equal within 1e-04: the worst" in capsys.readouterr().out
    monkeypatch.setattr(parity, "GRADIENT_TOLERANCE", 1e-12)
    assert main(command) == 1
    assert "the gradient of model.embed_tokens.weight" in capsys.readouterr().err


def test_verify_takes_the_vanishing_router_gradient_of_equal_experts_for_none(
    hf_dir, tmp_path, capsys
):
    anchor, branch, hf = (str(tmp_path / name) for name in ("anchor", "branch", "hf"))
    import_hf(hf_dir, tmp_path / "anchor")
    assert main(["branch", "--anchor", anchor, "--out", branch]) == 0
    assert main(["export", branch, hf]) == 0
    assert main(["verify", branch, hf, "--gradients"]) == 0
    assert "gradients equal within 1e-04" in capsys.readouterr().out


def test_verify_falls_back_to_tensors_where_memory_is_short(hf_dir, tmp_path, capsys, monkeypatch):
    import_hf(hf_dir, tmp_path / "checkpoint")
    monkeypatch.setattr(verify, "MEMORY_SHARE", 0.0)
    assert main(["verify", str(tmp_path / "checkpoint"), str(hf_dir)]) == 0
    shown = capsys.readouterr().out
    assert "don't fit into memory" in shown and "all 47 tensors are equal" in shown


def test_verify_proves_a_window_longer_than_its_texts(tmp_path, capsys, monkeypatch):
    random_olmo3(sliding_window=80, max_position_embeddings=256).save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    command = ["verify", str(tmp_path / "checkpoint"), str(tmp_path / "hf")]
    assert main(command) == 0
    assert "past the window of 80: logits differ by" in capsys.readouterr().out
    build = parity.build_model

    def build_with_another_window(config, layout):
        window = dataclasses.replace(config.window, size=79)
        return build(dataclasses.replace(config, window=window), layout)

    monkeypatch.setattr(parity, "build_model", build_with_another_window)
    assert main(command) == 1
    assert "first module to diverge is model.layers.0.self_attn" in capsys.readouterr().err
    monkeypatch.setattr(parity, "fits_past_window", lambda model: False)
    assert main(command) == 0
    assert "not proven, for want of memory: the sliding window of 80" in capsys.readouterr().out


def test_merge_shows_what_averaging_throws_away(hf_dir, tmp_path, capsys):
    import_hf(hf_dir, tmp_path / "anchor")
    random_experts(2, seed=3).save_pretrained(tmp_path / "moved")
    import_hf(tmp_path / "moved", tmp_path / "math")
    assert (
        main(
            [
                "merge",
                "--anchor",
                str(tmp_path / "anchor"),
                "--anchor-ffn",
                "average",
                "--out",
                str(tmp_path / "merged"),
                str(tmp_path / "math"),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert all(group in shown for group in ("embeddings", "attention", "head", "expert.0"))
    assert "%" in shown


def test_verify_names_the_first_module_that_diverges(hf_dir, tmp_path, capsys):
    import_hf(hf_dir, tmp_path / "checkpoint")
    tensors = load_file(hf_dir / "model.safetensors")
    tensors["model.layers.2.self_attn.k_norm.weight"] *= 1.1
    other = tmp_path / "other"
    other.mkdir()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_text((hf_dir / "config.json").read_text())
    assert main(["verify", str(tmp_path / "checkpoint"), str(other)]) == 1
    shown = capsys.readouterr().err
    assert "first module to diverge is model.layers.2.self_attn" in shown


def test_verify_proves_experts_with_fewer_active_than_there_are(tmp_path, capsys):
    model = random_experts(4)
    model.config.num_experts_per_tok = 2
    model.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    assert main(["verify", str(tmp_path / "checkpoint"), str(tmp_path / "hf")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["import", "nowhere", "OUT"], "nowhere is not a folder"),
        (["export", "nowhere", "OUT"], "not a megatron-bar checkpoint"),
        (["branch", "--anchor", "nowhere", "--out", "OUT"], "not a megatron-bar checkpoint"),
        (["merge", "--out", "OUT", "nowhere"], "not a megatron-bar checkpoint"),
        (["run", "nowhere.yaml"], "nowhere.yaml doesn't exist"),
        (["run", str(TOY), "rout.fraction=1"], "rout"),
        (["run", str(TOY), "seed=1", "--jobs", "1", "route.fractio=1"], "fractio"),
        (["run", str(TOY), "layout.tensor=3", "runs=OUT"], "multiple of 3"),
        (
            ["run", str(TOY), "layout.processes=8", "layout.tensor=8", "runs=OUT"],
            "math/midtrain: layout.tensor 8 doesn't divide the model's 4 attention heads",
        ),
        (
            ["run", str(TOY), "domains.math.sft.trainable=[expert.7]", "runs=OUT"],
            "math/sft: trainable: 'expert.7' matches no parameter group",
        ),
        (
            [
                "run",
                str(TOY),
                "domains.math.tasks=[{toy: math, count: 2, verifier: maths}]",
                "runs=OUT",
            ],
            "tasks of math: verifier 'maths' is unknown",
        ),
        (
            [
                "run",
                str(TOY),
                "runs=OUT",
                "domains.math.sft.data=[{toy: math, count: 9, weight: 2}, "
                "{toy: general, count: 9}]",
            ],
            "math/sft: source math has a weight and general has none",
        ),
        (["run", str(TOY), "pretrain.model=olmo9", "runs=OUT"], "olmo9"),
        (
            ["run", str(TOY), "pretrain=null", "anchor=nowhere", "runs=OUT"],
            "nowhere is not a folder",
        ),
        (["stage", "nowhere", "math/sft"], "doesn't exist"),
        (["run", str(TOY), "runs=OUT", "--jobs", "-3"], "--jobs -3: give at least 1"),
        (["upgrade", "nowhere", "--jobs", "0"], "--jobs 0: give at least 1"),
        (
            ["data", "prepare", str(TOY), "runs=OUT", "--processes", "0"],
            "--processes 0: give at least 1",
        ),
        (["import", "nowhere", "OUT", "--processes", "0"], "--processes 0: give at least 1"),
        (["plan", str(TOY), "--memory", "0"], "--memory 0: give at least 1"),
        (
            ["evaluate", "nowhere", "--suite", "paper", "--limit", "-1"],
            "--limit -1: give at least 1",
        ),
    ],
)
def test_wrong_input_gets_one_line_and_leaves_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([a.replace("OUT", str(tmp_path / "out")) for a in arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


LONG = "x" * 250


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["plan", str(TOY), "--plot", "nope/x.png"],
            "x.png can't be written: there is no folder nope",
        ),
        (["plan", str(TOY), "--plot", "x.dog"], "x.dog can't be written: a picture's name ends in"),
        (["plan", str(TOY), "--plot", "x"], "x can't be written: a picture's name ends in one of"),
        (["compare", "run", "--json", "nope/x.json"], "can't be written: there is no folder nope"),
        (["compare", "run", "--json", "run"], "run can't be written: it is a folder; name a file"),
        (["report", "run", "--out", "file/x.html"], "can't be written: there is no folder file"),
        (["report", "run", "--out", f"{LONG}.html"], ".html can't be written: File name too long"),
        (["rehearse", str(TOY), "--keep", "file/x"], "file/x can't be written: Not a directory"),
        (["rehearse", str(TOY), "--keep", LONG], "can't be written: File name too long"),
        (
            ["evaluate", "run", "--task", "a=b:exact", "--out", "file/x/y"],
            "written: Not a directory",
        ),
        (["import", "org/model", "file/x"], "file/x can't be written: Not a directory"),
        (["export", "CHECKPOINT", "file/x"], "file/x can't be written: Not a directory"),
    ],
)
def test_a_place_that_can_not_be_written_is_reported_before_work(
    arguments, message, tmp_path, monkeypatch, capsys, hf_dir
):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("file").touch()
    if "CHECKPOINT" in arguments:
        import_hf(hf_dir, tmp_path / "CHECKPOINT")
    before = set(tmp_path.rglob("*"))
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.strip().splitlines()) == 1 and not shown.out
    assert set(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def talking_dir(tmp_path_factory):
    """A model with a tokenizer, as a Hugging Face folder."""
    return talking(random_dense(**TALKING), tmp_path_factory.mktemp("talking") / "hf")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task", "talk=nope.jsonl:exact"], "tasks of talk: nope.jsonl is not a file"),
        (["--task", "talk=bad.jsonl:exact"], "tasks of talk: bad.jsonl:2: "),
        (["--task", "talk=items.jsonl:exact", "--chat-template", "chatml"], "'chatml' is unknown"),
        (["--task", "talk=items.jsonl:exact", "opt_out=[law]"], "there is no expert 'law'"),
        (["--task", "talk=items.jsonl:mine.py:score"], "/mine.py is not a file"),
    ],
)
def test_evaluate_finds_what_is_wrong_before_ranks_start(
    words, message, talking_dir, tmp_path, monkeypatch, capsys
):
    def start(*arguments, **more):
        raise AssertionError("ranks start")

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.chdir(tmp_path)
    item = json.dumps({"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"})
    Path("items.jsonl").write_text(f"{item}\n")
    Path("bad.jsonl").write_text(f"{item}\n{item[:-1]}\n")
    assert main(["evaluate", str(talking_dir), *words, "--out", "out"]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"items.jsonl", "bad.jsonl"}


@pytest.mark.slow
def test_the_installed_command_exits_with_its_status():
    done = subprocess.run(
        [sys.executable, "-m", "megatron_bar", "import", "nowhere", "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("megatron-bar: nowhere is not a folder")


def test_versions_are_reported_whichever_way_it_is_called(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"megatron-bar {megatron_bar.__version__}, Python 3.")
    assert "megatron-core" in shown
    for module in ("megatron_bar", "megatron_bar.cli"):
        called = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60
        )
        assert called.returncode == 0 and called.stdout == shown


@pytest.mark.slow
def test_looking_at_a_run_loads_nothing_that_computes(tmp_path):
    run = tmp_path / "toy"
    run.mkdir()
    save_recipe(load_recipe(TOY), run / "recipe.yaml")
    code = """
import sys
from megatron_bar.cli import main
assert main(sys.argv[1:]) == 0
print({"torch", "megatron.core", "transformers"} & sys.modules.keys())
"""
    printed = subprocess.run(
        [sys.executable, "-c", code, "status", str(run)], capture_output=True, text=True, timeout=60
    )
    assert printed.returncode == 0, printed.stderr
    assert "routed" in printed.stdout and printed.stdout.endswith("set()\n")


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    """As head does: while it writes, or where all waits to be written at the very end."""
    for times in (1, 2000):
        code = f"""
import sys
from megatron_bar import cli
cli.COMMANDS["status"] = lambda args: print("a line of a script\\n" * {times})
sys.exit(cli.main(["status", "x"]))
"""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            ended = subprocess.run(
                [sys.executable, "-c", code],
                stdout=writing,
                text=True,
                stderr=subprocess.PIPE,
                timeout=60,
            )
        finally:
            os.close(writing)
        assert ended.stderr == "" and ended.returncode == 128 + signal.SIGPIPE


def test_a_dry_run_tells_what_would_run_and_writes_nothing(tmp_path, capsys):
    assert main(["run", str(TOY), f"runs={tmp_path}", "domains.math=null", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "stages to run: base, anchor, pretrained, code/branch" in said and "math" not in said
    assert main(["run", str(TOY), f"runs={tmp_path}", "layout.tensor=3", "--dry-run"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_faults_that_were_found_together_are_a_line_each(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("nmae: x\nseed: many\n")
    assert main(["plan", str(tmp_path / "r.yaml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("megatron-bar: recipe ") for line in lines)
