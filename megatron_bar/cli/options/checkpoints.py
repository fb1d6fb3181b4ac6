"""Commands that make and prove a checkpoint."""

from __future__ import annotations

from pathlib import Path

from megatron_bar.cli.options.shared import Commands, add_dtype, add_processes
from megatron_bar.recipe.names import MERGE_RULES
from megatron_bar.recipe.schema import Merge


def add_checkpoint_commands(commands: Commands) -> None:
    """Add import, export, branch, merge and verify."""
    import_ = commands.add("import", "turn a Hugging Face folder into a checkpoint")
    import_.add_argument(
        "hf_dir",
        metavar="HF",
        help="a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub, which is downloaded",
    )
    import_.add_argument("out", type=Path)
    add_dtype(import_)
    add_processes(import_)

    export = commands.add("export", "turn a checkpoint into a Hugging Face folder")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument(
        "--chat-template",
        metavar="NAME",
        help="olmo, tulu or a .jinja file (default: what the checkpoint was "
        "trained with, or its tokenizer's own)",
    )
    export.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a weights file (default: 5GB)"
    )
    export.add_argument(
        "--active",
        type=int,
        metavar="K",
        help="experts that a token goes to (default: as many as in training)",
    )
    add_dtype(export)
    add_processes(export)

    branch = commands.add("branch", "make a 2-expert model of an anchor and a pretrained model")
    branch.add_argument("--anchor", type=Path, required=True, metavar="CKPT")
    branch.add_argument(
        "--pretrained",
        type=Path,
        metavar="CKPT",
        help="where expert 1 starts from (default: the anchor)",
    )
    branch.add_argument("--name", default="domain", help="what expert 1 is called")
    branch.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the router's rows; the same for all branches of a merge",
    )
    branch.add_argument("--out", type=Path, required=True, metavar="CKPT")
    add_processes(branch)

    merge = commands.add("merge", "make one model of several branches")
    merge.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="branches, or a merged model and branches to add to it",
    )
    merge.add_argument("--anchor", type=Path, metavar="CKPT", help="the dense anchor")
    merge.add_argument(
        "--average",
        choices=("published", "branches"),
        default="published",
        help="shared parameters: the mean over branches and anchor (default), or over the branches",
    )
    merge.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="GROUP=NAME:W,...",
        help="what the models weigh in a group of parameters, by their expert's "
        "name, anchor or merged; may be repeated",
    )
    merge.add_argument(
        "--anchor-ffn",
        choices=("same", "average"),
        default="same",
        help="the anchor's FFN: proven the same everywhere (default), or averaged, "
        "where branches trained it",
    )
    merge.add_argument(
        "--experts",
        type=lambda text: text.split(","),
        metavar="anchor,NAME,...",
        help="which experts the result has, in which order (default: all)",
    )
    merge.add_argument(
        "--rule",
        choices=list(MERGE_RULES),
        metavar="NAME",
        help="shared parameters: what a rule makes of the branches' changes from "
        f"the anchor, in place of a mean: {', '.join(MERGE_RULES)}",
    )
    merge.add_argument(
        "--scale",
        type=float,
        default=Merge.scale,
        metavar="FACTOR",
        help="of task_arithmetic, ties and dare_*: of the combined change (default: %(default)s)",
    )
    merge.add_argument(
        "--density",
        type=float,
        default=Merge.density,
        metavar="SHARE",
        help="of ties and dare_*: what is kept of a change (default: %(default)s)",
    )
    merge.add_argument(
        "--t",
        type=float,
        default=Merge.t,
        metavar="SHARE",
        help="of slerp: of the way from the first to the second (default: %(default)s)",
    )
    merge.add_argument("--seed", type=int, default=0, help="of what dare_* draws")
    merge.add_argument("--out", type=Path, required=True, metavar="CKPT")
    add_processes(merge)

    verify = commands.add(
        "verify", "prove a checkpoint's bits, or that it computes what transformers does"
    )
    verify.add_argument("checkpoint", help="or a Hugging Face folder, where no other is given")
    verify.add_argument(
        "hf_dir",
        metavar="HF",
        nargs="?",
        help="a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub",
    )
    verify.add_argument(
        "--tensors", action="store_true", help="compare tensor by tensor, whatever the model's size"
    )
    verify.add_argument("--gradients", action="store_true", help="compare gradients too")
    verify.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest relative difference of a module's output (default: 1e-5)",
    )
