"""Mid-training's rows: Megatron-Core's GPTDataset over each source, blended by shares.

A source's documents are shuffled, joined and cut into windows of one length, epoch after epoch, and
the blend draws from the sources' windows so that their shares hold at any step. All of that is a
function of the sources, the shares, the seed and the number of rows.

A window's documents end with eos, which is where attention and positions are reset and no loss is
counted across: what Megatron's reset_attention_mask, reset_position_ids and eod_mask_loss mean.
Megatron would build that mask of S x S a window in a loop over its documents; `to_batch` builds
what the attention at hand takes.

The published mid-training doesn't look across documents either, as far as its scripts could be
read: its dataset cuts each sequence from one document (allenai/FlexOlmo, internal/common.py
@0c40ee63). That curriculum of growing lengths isn't reproduced here. The July 2025 version of the
same file joins documents without a reset.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.data.store import StoredDocuments
from megatron_bar.runtime.distributed import is_main, on_main
from megatron_bar.runtime.files import json_digest, publish, staging_path


@dataclass
class _Tokenizer:
    """All that GPTDataset asks of a tokenizer when its texts are tokens already.

    Without a padding token no token of a text is ever taken for one.
    """

    eod: int
    vocab_size: int | None = None
    unique_identifiers: dict = field(default_factory=dict)


class BlendedRows:
    """Rows of running text, in the order to train in."""

    ordered: ClassVar[bool] = True

    def __init__(
        self,
        sources: dict[str, StoredDocuments],
        shares: Sequence[float],
        rows: int,
        per_epoch: int,
        sequence_length: int,
        seed: int,
        cache: Path,
    ) -> None:
        """Build the order of `rows` rows, or read it where it was built before, in `cache`.

        Called by every rank of a process group. The main rank writes the order, beside its place
        and then renamed; the others read it.
        """
        self.source_names = tuple(sources)
        self.per_epoch = per_epoch
        self.sequence_length = sequence_length
        self.shares = list(shares)
        self._rows = rows
        documents = list(sources.values())
        self._eos = documents[0].manifest["eos"]
        prefixes = [stored.prefix for stored in documents]
        weights = list(shares) if len(prefixes) > 1 else None
        settings = [prefixes, weights, rows, sequence_length, seed, version("megatron-core")]
        folder = Path(cache) / json_digest(settings)[:16]

        def build(folder: Path, on_rank: bool) -> GPTDataset:
            config = GPTDatasetConfig(
                random_seed=seed % 2**32,
                sequence_length=sequence_length,
                blend=(prefixes, weights),
                split="1,0,0",
                path_to_cache=str(folder),
                tokenizer=_Tokenizer(self._eos),
                reset_position_ids=False,
                reset_attention_mask=False,
                eod_mask_loss=False,
                create_attention_mask=False,
                add_extra_token_to_sequence=False,  # OLMo's windows don't share a token either
            )
            builder = BlendedMegatronDatasetBuilder(
                GPTDataset, [rows, 0, 0], lambda: on_rank, config
            )
            return builder.build()[0]

        if on_main(lambda: not folder.is_dir()):
            staging = staging_path(folder)
            if is_main():
                shutil.rmtree(staging, ignore_errors=True)
            build(staging, is_main())
            if is_main():
                publish(staging, folder)
        self._windows = build(folder, True)

    def __len__(self) -> int:
        return self._rows

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """The rows at `indices`, in that order, read into memory."""
        rows = PackedRows.empty(len(indices), self.sequence_length, self.source_names, PackReport())
        for row, index in enumerate(indices):
            window = self._windows[int(index)]
            rows.tokens_RS[row] = window["tokens"].numpy()
            rows.sources_RS[row] = window.get("dataset_id", 0)
        ended_RS = np.cumsum(rows.tokens_RS == self._eos, axis=1, dtype=np.int32)
        rows.documents_RS[:, 0] = 1
        rows.documents_RS[:, 1:] = 1 + ended_RS[:, :-1]
        rows.loss_RS[:, 1:] = rows.documents_RS[:, 1:] == rows.documents_RS[:, :-1]
        return rows
