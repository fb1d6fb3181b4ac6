"""Every method of docs/systems.md on a bf16 model with real data: types, and a whole export."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from megatron_bar.checkpoints.number_types import stored_types
from megatron_bar.cli import main
from megatron_bar.methods import METHODS, stage_graph
from megatron_bar.methods.load import load_recipe
from tests.launch.real_model import recipe, write_material
from tests.launch.sample_data import SHARED

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project"),
]


def test_every_method_keeps_the_anchors_types_and_exports_them(tmp_path):
    write_material(tmp_path)
    made = recipe(tmp_path, {"processes": 1}, systems={name: {"method": name} for name in METHODS})
    made["evaluate"]["max_new_tokens"] = 1
    for domain in made["domains"].values():
        domain.pop("tasks")
        domain.pop("rlvr", None)
        for training in domain.values():
            training["steps"] = 1
    made["route"]["training"]["steps"] = 1
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(made))
    assert main(["run", str(tmp_path / "real.yaml")]) == 0
    for name in METHODS:
        run = tmp_path / "runs" / "real" / name
        stages = stage_graph(load_recipe(run / "recipe.yaml"))
        export = next(stage for stage in stages if stage.KIND == "export")
        last, exported = run / export.inputs["checkpoint"] / "checkpoint", run / "hf" / "model"
        # Retraining starts from the pretrained model, whose types the new one keeps.
        trained = torch.float32 if name.startswith("retrain") else torch.bfloat16
        imported = {"pretrained": torch.float32, "anchor": torch.bfloat16}
        for checkpoint in run.glob("**/checkpoint"):
            expected = imported.get(checkpoint.parent.name, trained)
            assert set(stored_types(checkpoint).values()) == {expected}, checkpoint
        assert main(["verify", str(last), str(exported), "--tensors"]) == 0
        assert json.loads((exported / "config.json").read_text())["torch_dtype"] == str(trained)[6:]
