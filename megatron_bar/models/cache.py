"""Keys and values of rows in generation, each of which stands at a position of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from megatron.core.inference.contexts import BaseInferenceContext

from megatron_bar.models.rope import rotated


@dataclass(frozen=True)
class _Pass:
    """What all layers of one kind share in a forward pass over S tokens of R rows."""

    cos_SR1h: torch.Tensor  # fp32; R may be 1, where all rows are at the same positions
    sin_SR1h: torch.Tensor
    visible_R1SL: torch.Tensor | None  # None: each position sees itself and what is before it


class RowCache(BaseInferenceContext):
    """Keys and values of R rows of at most `length` tokens, K heads of D numbers each.

    Megatron's static context has all rows at one position, and its dynamic one needs a GPU. This
    one is passed to the model in their place. Before each forward pass, `prefill` or `decode` says
    what the tokens in it are.
    """

    def __init__(self, rows: int, length: int) -> None:
        # Logits of the last token alone: megatron-core 0.16 reads the first, later ones the second.
        # Their base class takes one or the other.
        self.materialize_only_last_token_logits = True
        self.config = SimpleNamespace(materialize_only_last_token_logits=True)
        self.rows = rows
        self.max_sequence_length = length  # as Megatron asks for it
        self._keys_RLKD: dict[int, torch.Tensor] = {}  # by layer
        self._values_RLKD: dict[int, torch.Tensor] = {}
        self._rotations_L1h: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}  # by window
        self._passes: dict[int | None, _Pass] = {}  # by window

    def is_static_batching(self) -> bool:
        return True

    def is_decode_only(self) -> bool:
        return self._decoding

    def prefill(self, length: int, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """The next pass is over the first `length` tokens of some prompts: `rows[i]` of the cache
        gets those of the pass's row `sources[i]`.

        Prompts that are shorter are padded on the right. What padding leaves in the cache is
        overwritten by the row's own tokens before any of them sees it.
        """
        self._decoding = False
        self._targets, self._sources = rows, sources
        self._seen = length
        self._positions_SR = torch.arange(length, device=rows.device)[:, None]
        self._passes.clear()

    def decode(self, positions: Sequence[int], device: torch.device) -> None:
        """The next pass is over one token of each row, at these positions.

        Where all are the same, nothing has to be hidden, and keys go to one place.
        """
        self._decoding = True
        self._seen = max(positions) + 1
        self._together = min(positions) == max(positions)
        self._every_R = torch.arange(self.rows, device=device)
        of_rows = positions[:1] if self._together else positions
        self._positions_SR = torch.tensor([of_rows], device=device)
        self._passes.clear()

    def keep(self, rows: torch.Tensor) -> None:
        """Leave only these rows, in this order."""
        self.rows = len(rows)
        for tensors_RLKD in (self._keys_RLKD, self._values_RLKD):
            for layer, tensor_RLKD in tensors_RLKD.items():
                tensors_RLKD[layer] = tensor_RLKD[rows]

    def attend(
        self,
        layer: int,
        q_SRND: torch.Tensor,
        k_SRKD: torch.Tensor,
        v_SRKD: torch.Tensor,
        angles_L11D: torch.Tensor,
        window: int | None,
        scale: float | None,
    ) -> torch.Tensor:
        """Rotate, remember the pass's keys and values, and attend to what each token may see.

        `window` is how many positions a sliding layer sees, the token's own among them; all layers
        with the same one have the same `angles_L11D`. Returns [S, R, N * D].
        """
        if window not in self._passes:
            self._passes[window] = self._new_pass(angles_L11D, window)
        now = self._passes[window]
        q_SRND, k_SRKD = (rotated(x, now.cos_SR1h, now.sin_SR1h) for x in (q_SRND, k_SRKD))
        k_RLKD = self._remember(self._keys_RLKD, layer, k_SRKD)
        v_RLKD = self._remember(self._values_RLKD, layer, v_SRKD)
        if self._decoding:
            # The heads that share keys as so many queries: each key is read once.
            q_RKXD = q_SRND.view(*k_SRKD.shape[1:3], -1, q_SRND.shape[-1])
        else:
            q_RKXD = q_SRND.permute(1, 2, 0, 3)
        x_RKXD = torch.nn.functional.scaled_dot_product_attention(
            q_RKXD,
            k_RLKD.transpose(1, 2),
            v_RLKD.transpose(1, 2),
            attn_mask=now.visible_R1SL,
            is_causal=now.visible_R1SL is None and not self._decoding,
            scale=scale,
            enable_gqa=not self._decoding,
        )
        if self._decoding:
            return x_RKXD.reshape(1, len(x_RKXD), -1)
        return x_RKXD.permute(2, 0, 1, 3).flatten(2)

    def _new_pass(self, angles_L11D: torch.Tensor, window: int | None) -> _Pass:
        if window not in self._rotations_L1h:  # of all positions, since a step's few cost as much
            angles_L1h = angles_L11D[:, 0, :, : angles_L11D.shape[-1] // 2].float()
            self._rotations_L1h[window] = (angles_L1h.cos(), angles_L1h.sin())
        cos_SR1h, sin_SR1h = (x[self._positions_SR] for x in self._rotations_L1h[window])
        visible_R1SL = None
        apart = self._decoding and not self._together
        if apart or (window is not None and window < self._seen):
            places_L = torch.arange(self._seen, device=angles_L11D.device)
            distance_R1SL = self._positions_SR.T[:, None, :, None] - places_L
            visible_R1SL = distance_R1SL >= 0
            if window is not None:
                visible_R1SL &= distance_R1SL < window
        return _Pass(cos_SR1h, sin_SR1h, visible_R1SL)

    def _remember(
        self, tensors_RLKD: dict[int, torch.Tensor], layer: int, new_SRKD: torch.Tensor
    ) -> torch.Tensor:
        """Write into the layer's tensor; returns what the pass attends to."""
        if layer not in tensors_RLKD:
            shape = (self.rows, self.max_sequence_length, *new_SRKD.shape[2:])
            tensors_RLKD[layer] = new_SRKD.new_zeros(shape)
        tensor_RLKD = tensors_RLKD[layer]
        if self._decoding:
            if self._together:
                tensor_RLKD[:, self._seen - 1] = new_SRKD[0]
            else:
                tensor_RLKD[self._every_R, self._positions_SR[0]] = new_SRKD[0]
            return tensor_RLKD[:, : self._seen]
        new_RSKD = new_SRKD.transpose(0, 1)
        tensor_RLKD[self._targets, : self._seen] = new_RSKD[self._sources]
        return new_RSKD
