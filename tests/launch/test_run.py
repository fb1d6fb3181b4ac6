"""`megatron-bar run`, whole: what is done stays, what is stale is done again, and nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from megatron_bar.cli import main
from megatron_bar.runtime.stopping import CONTINUE_LATER
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.launch.answers import same_answers_as_transformers

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

_TRAINING = dict(sequence_length=96, global_batch_size=8, micro_batch_size=4, lr=3e-3, log_every=2)


def _held_out(domain: str) -> dict:
    return {"toy": domain, "split": "heldout", "count": 10}


def _recipe(runs: Path) -> dict:
    sft = dict(**_TRAINING, steps=6)
    return {
        "name": "mini",
        "runs": str(runs),
        "pretrain": {
            "vocab_size": 600,
            "chat": [{"toy": "general", "count": 200}],
            "training": dict(
                **_TRAINING,
                steps=10,
                layout={"processes": 2},
                data=[{"toy": "general", "count": 100, "name": "prose"}],
            ),
        },
        "domains": {
            "math": {
                "midtrain": dict(
                    **_TRAINING,
                    steps=4,
                    data=[{"toy": "math", "count": 100}],
                    validate_every=2,
                    validation=[_held_out("math"), _held_out("code")],
                ),
                "sft": sft
                | {
                    "data": [{"toy": "math", "count": 80}, {"toy": "general", "count": 40}],
                    "validation": [_held_out("math"), _held_out("general")],
                },
                "tasks": [{"toy": "math", "split": "heldout", "count": 6}],
            },
            "tool_use": {
                "sft": sft
                | {
                    "data": [{"toy": "tool_use", "count": 80}, {"toy": "general", "count": 40}],
                    "layout": {"processes": 2, "expert": 2},
                    "validation": [_held_out("tool_use")],
                },
                "tasks": [{"toy": "tool_use", "split": "heldout", "count": 6}],
            },
        },
        "route": {"fraction": 0.5, "training": dict(**_TRAINING, steps=4)},
        "evaluate": {
            "general": [{"toy": "general", "split": "heldout", "count": 6}],
            "max_new_tokens": 12,
        },
    }


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "mini.yaml").write_text(yaml.safe_dump(_recipe(folder / "runs")))
    assert main(["run", str(folder / "mini.yaml")]) == 0
    return folder


def _ids(run: Path) -> dict[str, str]:
    found = {
        str(path.parent.relative_to(run)): json.loads(path.read_text())["id"]
        for path in run.rglob("stage.json")
    }
    return {name: id for name, id in found.items() if not name.startswith("replaced/")}


def _done_again(workplace: Path, *overrides: str, status: int = 0) -> set[str]:
    run = workplace / "runs" / "mini"
    before = _ids(run)
    assert main(["run", str(workplace / "mini.yaml"), *overrides]) == status
    return {name for name, identity in _ids(run).items() if before.get(name) != identity}


AFTER_A_DOMAIN = {"merged", "routed", "hf", "evaluate/merged", "evaluate/routed", "report"}


def test_a_second_run_does_nothing_and_says_so(workplace, capsys):
    assert _done_again(workplace) == set()
    assert "nothing to do, all 17 stages are done" in capsys.readouterr().out


def test_a_deleted_domain_is_done_again_and_what_needs_it(workplace):
    shutil.rmtree(workplace / "runs" / "mini" / "math")
    assert _done_again(workplace) == AFTER_A_DOMAIN | {
        "math/branch",
        "math/midtrain",
        "math/sft",
        "evaluate/math",
    }


def test_a_changed_setting_is_done_again_and_what_needs_it(workplace):
    assert _done_again(workplace, "route.training.steps=5") == {
        "routed",
        "hf",
        "evaluate/routed",
        "report",
    }
    assert _done_again(workplace, "route.training.steps=5") == set()
    assert _done_again(workplace) == {"routed", "hf", "evaluate/routed", "report"}


def test_what_every_stage_leaves(workplace):
    run = workplace / "runs" / "mini"
    for stage in ("math/midtrain", "math/sft", "tool_use/sft", "routed"):
        done = read_done(run / stage)
        assert done["anchor_digest"]["before"] == done["anchor_digest"]["after"]
        assert done["trainable"] > 0 and done["frozen"] > 0 and done["tokens"] > 0
        assert (run / stage / "metrics.jsonl").is_file()
        assert any((run / stage / "tensorboard").iterdir())
        assert not (run / stage / "resume").exists()
    digests = {read_done(run / s)["anchor_digest"] for s in ("math/branch", "merged")}
    assert digests == {read_done(run / "routed")["anchor_digest"]["after"]}
    log = (run / "logs" / "math-sft.txt").read_text()
    assert "expert.0" in log and "frozen" in log and "documents in" in log
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "stage, steps, sources",
    [
        ("math/midtrain", [2, 4], {"math", "code"}),
        ("math/sft", [6], {"math", "general"}),
        ("tool_use/sft", [6], set()),
        ("routed", [], set()),
    ],
)
def test_validation_losses_by_source(workplace, stage, steps, sources):
    """At intervals and at the end; a single source is the whole."""
    validated = [
        m for m in read_metrics(workplace / "runs" / "mini" / stage) if "validation_loss" in m
    ]
    assert [m["step"] for m in validated] == steps
    for metrics in validated:
        found = {key: loss for key, loss in metrics.items() if key.startswith("validation_loss/")}
        assert found.keys() == {f"validation_loss/{source}" for source in sources}
        if found:
            assert min(found.values()) < metrics["validation_loss"] < max(found.values())


def test_the_export_is_what_transformers_and_our_evaluation_generate(workplace):
    run = workplace / "runs" / "mini"
    folder = run / "hf" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).num_experts_per_tok == 3 and tokenizer.chat_template
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    assert tokenizer.eos_token_id in stops
    assert same_answers_as_transformers(run, max_new_tokens=12) == 15


def test_a_failed_stage_stops_what_needs_it_and_the_others_go_on(workplace, capsys):
    run = workplace / "runs" / "mini"
    before = _ids(run)["math/sft"]
    shutil.rmtree(run / "tool_use")
    again = _done_again(
        workplace, "domains.math.sft.lr=1e30", "domains.tool_use.sft.steps=5", status=1
    )
    assert again == {"tool_use/branch", "tool_use/sft", "evaluate/tool_use"}
    shown = capsys.readouterr()
    assert "math/sft: the loss is not a number" in shown.err and "log:" in shown.err
    said = shown.err.strip().splitlines()
    # A busy machine is told, too, when the check of the recipe has taken seconds.
    assert len([line for line in said if "checked in" not in line]) == 1
    # What math/sft was before is back, and with it what was made of it.
    again = _done_again(workplace)
    assert again == AFTER_A_DOMAIN | {"math/sft", "tool_use/sft", "evaluate/tool_use"}
    assert _ids(run)["math/sft"] == before and not (run / "replaced").exists()


def test_a_run_that_was_killed_goes_on_to_the_same_bits(workplace, tmp_path):
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(_recipe(tmp_path / "runs")))
    run = tmp_path / "runs" / "mini"
    command = [sys.executable, "-m", "megatron_bar", "run", str(tmp_path / "mini.yaml")]
    for stage, number in (("base", signal.SIGKILL), ("math/sft", signal.SIGTERM)):
        killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (run / stage / "metrics.jsonl").is_file():
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(number)
        status = killed.wait()
        assert status == (CONTINUE_LATER if number == signal.SIGTERM else -number)
        assert not (run / stage / "stage.json").exists()
    assert main(["run", str(tmp_path / "mini.yaml")]) == 0
    uninterrupted = workplace / "runs" / "mini"
    assert group_digests(run / "routed" / "checkpoint") == group_digests(
        uninterrupted / "routed" / "checkpoint"
    )


def test_a_running_run_is_not_joined_by_another(workplace, capsys):
    import fcntl

    with open(workplace / "runs" / "mini" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["run", str(workplace / "mini.yaml")]) == 1
    assert "another megatron-bar run is at work" in capsys.readouterr().err


def test_torchrun_starts_a_stage_by_hand(workplace):
    """Last in this file: what needs the stage is stale afterwards."""
    stage = workplace / "runs" / "mini" / "tool_use" / "sft"
    before, bits = read_done(stage), group_digests(stage / "checkpoint")
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [str(torchrun), "--nproc-per-node", "2", "-m", "megatron_bar", "stage"]
    subprocess.run([*command, str(stage.parents[1]), "tool_use/sft"], check=True, timeout=300)
    assert read_done(stage)["id"] != before["id"]
    assert group_digests(stage / "checkpoint") == bits
