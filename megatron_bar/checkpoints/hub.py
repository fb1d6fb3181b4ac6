"""Models by their name on the Hugging Face hub, beside folders: OWNER/NAME or OWNER/NAME@REVISION.

What was downloaded lies in the hub's cache, a folder a commit, and is found without a network.
"""

from __future__ import annotations

import re
from pathlib import Path

from megatron_bar.checkpoints.hf_weights import missing_weights
from megatron_bar.checkpoints.tokenizer_files import TOKENIZER_FILES
from megatron_bar.runtime.errors import BarError

_NAME = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


def local_folder(name: str | Path, weights: bool = True, download: bool = True) -> Path:
    """The folder that holds a model: the one of this name, or the hub's in its cache.

    What the cache lacks is downloaded, unless `download` is false or HF_HUB_OFFLINE is set. Without
    `weights` config and tokenizer are enough.

    Raises BarError if there is no such folder and no such model, or it can't be had from here.
    """
    folder, match = Path(name), _NAME.fullmatch(str(name))
    if folder.is_dir():
        return folder
    if match is None:
        raise BarError(
            f"{name} is not a folder; give a Hugging Face model folder, or OWNER/NAME of the hub"
        )
    found = _snapshot(
        match,
        (*_WEIGHTS, *TOKENIZER_FILES, "config.json")
        if weights
        else (*TOKENIZER_FILES, "config.json"),
        download,
    )
    missing = missing_weights(found) if weights else None
    if not (found / "config.json").is_file():
        missing = "config.json"
    if missing is not None:
        raise BarError(f"{name}: {missing} is not in the hub's cache; {_how_to_get(match)}")
    return found


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is of; None for any other folder."""
    return Path(folder).name if Path(folder).parent.name == "snapshots" else None


def _snapshot(match: re.Match[str], files: tuple[str, ...], download: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    name, revision = match[0], match["revision"]
    try:
        return Path(
            snapshot_download(
                match["id"],
                revision=revision,
                allow_patterns=list(files),
                local_files_only=not download or constants.HF_HUB_OFFLINE,
            )
        )
    except hub.LocalEntryNotFoundError:
        raise BarError(
            f"{name} is neither a folder here nor in the hub's cache; {_how_to_get(match)}"
        ) from None
    except hub.GatedRepoError:
        raise BarError(
            f"{name} is gated: accept its terms at {constants.ENDPOINT}/{match['id']}, "
            "then log in with: hf auth login"
        ) from None
    except hub.RevisionNotFoundError:
        raise BarError(f"{name}: the hub's {match['id']} has no revision {revision}") from None
    except hub.RepositoryNotFoundError:
        raise BarError(
            f"{name} is neither a folder here nor a model of the hub; if it is private "
            "there, log in with: hf auth login"
        ) from None
    except (OSError, ValueError) as error:  # the hub's other answers, a full disk, a bad name
        raise BarError(f"{name} can't be downloaded: {' '.join(str(error).split())}") from None


def _how_to_get(match: re.Match[str]) -> str:
    revision = f" --revision {match['revision']}" if match["revision"] else ""
    return f"download it first with: hf download {match['id']}{revision}"
