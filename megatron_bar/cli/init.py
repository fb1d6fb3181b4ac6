"""`megatron-bar init`: a commented recipe to start from, and a description of the cluster.

What it writes are the files of examples/ and slurm/ themselves: a checkout links to them, and a
wheel carries them.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from megatron_bar.launch.slurm.site import TEMPLATES
from megatron_bar.runtime.disk import check_output_file, check_output_folder
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_text

EXAMPLES = Path(__file__).parent / "examples"
SITE = "site.yaml"
_PLACES = ("examples/", "mycluster/")  # where the examples say that files lie


def starts() -> dict[str, str]:
    """The names that `init` takes, each with the first line of its recipe.

    Examples that stand on another file are left out.
    """
    found = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "extends:" not in text:
            found[path.stem] = text.partition("\n")[0].removeprefix("# ")
    return found


def write_start(args: argparse.Namespace) -> None:
    """Write the recipe `args.example` and a site file to `args.folder`, or tell what there is."""
    known = starts()
    if args.example is None:
        width = max(map(len, known))
        for name, summary in known.items():
            print(f"{name:{width}}  {summary}")
        return
    if args.example not in known:
        raise BarError(f"init {args.example}: write one of {', '.join(known)}")
    recipe, site = args.folder / f"{args.example}.yaml", args.folder / SITE
    if recipe.exists():
        raise BarError(f"{recipe} is there already, and stays; name another folder")
    texts = {recipe: _as_seen_from_here(EXAMPLES / recipe.name, args.folder)}
    if site.exists():
        print(f"{site} is there already, and stays")
    else:
        texts[site] = (TEMPLATES / SITE).read_text(encoding="utf-8")
    check_output_folder(args.folder)
    args.folder.mkdir(parents=True, exist_ok=True)
    for path in texts:
        check_output_file(path)
    for path, text in texts.items():
        write_text(path, text)
        print(f"{path} is written")
    shown = shlex.quote(str(recipe))
    print(
        f"next: megatron-bar plan {shown}, then megatron-bar run {shown}\n"
        f"on a cluster: fill in {site}; megatron-bar submit {shown} --site "
        f"{shlex.quote(str(site))} --dry-run"
    )


def _as_seen_from_here(example: Path, folder: Path) -> str:
    """An example's text, whose commands name the files where they are written now."""
    text = example.read_text(encoding="utf-8")
    here = "" if folder == Path() else f"{shlex.quote(str(folder))}/"
    for place in _PLACES:
        text = text.replace(place, here)
    return text
