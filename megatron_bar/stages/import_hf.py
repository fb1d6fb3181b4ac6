"""`import`: a Hugging Face folder becomes a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.fields import HF_FOLDER, key
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.conversion import ConversionStage

if TYPE_CHECKING:
    from pathlib import Path

    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context


@dataclass(frozen=True, kw_only=True)
class ImportStage(ConversionStage):
    """Imports the model `hf` of the recipe, or what stage `base` of this run left in `folder`."""

    hf: str | None = key(None, contents=HF_FOLDER)
    folder: str | None = None

    KIND = "import"
    LABEL = "import"

    def model(self, inputs: Sequence[ModelConfig], dense: ModelConfig) -> ModelConfig:
        return dense

    def check_outside(self, run: Path, faults: Faults) -> None:
        """A model of the hub is downloaded where it may be."""
        from megatron_bar.checkpoints import hf
        from megatron_bar.checkpoints.convert import check_import
        from megatron_bar.checkpoints.hf_weights import missing_weights
        from megatron_bar.checkpoints.hub import local_folder

        if self.hf is None:
            return
        try:
            folder = local_folder(self.hf)
        except BarError as error:
            faults.add(str(error), self.name, absent=True)
            return
        with faults.of(self.name):
            hf.model_config_from_hf(folder)
            if self.name == "anchor" and not (folder / "tokenizer.json").is_file():
                faults.add(f"{folder} has no tokenizer.json", self.name, absent=True)
            if missing := missing_weights(folder):
                # A config alone is enough for a plan.
                none = next(folder.glob("*.safetensors*"), None) is None
                faults.add(f"{folder} lacks the weights, {missing}", self.name, absent=none)
            else:
                check_import(folder)

    def run(self, context: Context) -> dict[str, Any]:
        """Raises BarError for a model of the hub that isn't in the cache: no stage downloads."""
        from megatron_bar.checkpoints.convert import import_hf
        from megatron_bar.checkpoints.hub import commit_of, local_folder

        if self.hf is not None:
            source = local_folder(self.hf, download=False)
        else:  # a base that this run trained; from here on it is a folder like any other
            assert self.folder is not None
            source = context.input_folder("base") / self.folder
        model = import_hf(source, context.folder / "checkpoint", overwrite=True)
        commit = commit_of(source)
        return {
            "source": self.hf if commit else str(source),
            "commit": commit,
            "layers": model.num_layers,
            "experts": model.num_experts,
        }

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        return (self.name,) if first == "hf" else super()._recipe_key(first, *rest)
