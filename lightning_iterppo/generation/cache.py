"""A key-value cache that many rows share one timeline of slots in.

Every row writes at the same slot, so appending is one copy and no row ever moves; a row that has nothing to write there
leaves a hole. Which slots of a row are real is kept beside it, and the attention mask is made of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_STEP = 64  # slots added at once


class SlotLayer(DynamicLayer):
    """One layer's keys and values in a buffer that grows by steps; transformers' own copies all on every token."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (rows, heads, new, width) and gives all that is there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.length + key_states.shape[2]
        self.reserve(key_states, stop)
        assert self.key_buffer is not None and self.value_buffer is not None
        self.key_buffer[:, :, self.length : stop] = key_states
        self.value_buffer[:, :, self.length : stop] = value_states
        self.length = stop
        self.keys = self.key_buffer[:, :, :stop]
        self.values = self.value_buffer[:, :, :stop]
        return self.keys, self.values

    def reserve(self, like: Tensor, slots: int) -> None:
        """Makes room for ``slots`` slots in all."""
        if self.key_buffer is not None and self.key_buffer.shape[2] >= slots:
            return
        rows, heads, _, width = like.shape
        room = -(-slots // _STEP) * _STEP
        # Zeros, not what memory held: a hole is masked out, but 0 times a NaN would still be a NaN.
        keys, values = like.new_zeros(rows, heads, room, width), like.new_zeros(rows, heads, room, width)
        if self.key_buffer is not None and self.value_buffer is not None:
            keys[:, :, : self.length] = self.key_buffer[:, :, : self.length]
            values[:, :, : self.length] = self.value_buffer[:, :, : self.length]
        self.key_buffer, self.value_buffer = keys, values

    def get_seq_length(self) -> int:
        """Slots in use."""
        return self.length

    def take(self, rows: Tensor) -> SlotLayer:
        """A copy of some rows."""
        other = SlotLayer()
        assert self.key_buffer is not None and self.value_buffer is not None
        other.lazy_initialization(self.key_buffer, self.value_buffer)
        other.length = self.length
        other.key_buffer = self.key_buffer[rows]
        other.value_buffer = self.value_buffer[rows]
        return other

    def put_back(self, other: SlotLayer, rows: Tensor, since: int) -> None:
        """Takes over the slots that ``other``, made by `take`, added to the rows after slot ``since``."""
        assert other.key_buffer is not None and other.value_buffer is not None
        self.reserve(other.key_buffer.new_empty(self.rows, *other.key_buffer.shape[1:]), other.length)
        assert self.key_buffer is not None and self.value_buffer is not None
        self.key_buffer[rows, :, since : other.length] = other.key_buffer[:, :, since : other.length]
        self.value_buffer[rows, :, since : other.length] = other.value_buffer[:, :, since : other.length]
        self.length = other.length

    @property
    def rows(self) -> int:
        """How many rows there are."""
        assert self.key_buffer is not None
        return int(self.key_buffer.shape[0])


class SlotCache:
    """All layers, and which slots of each row are real.

    Args:
        layers: one a layer of the model.
        real: (rows, slots), true where a row has a token.
    """

    def __init__(self, layers: list[SlotLayer], real: Tensor) -> None:
        self.layers = layers
        self.real = real
        self.cache = Cache(layers=list(layers))

    @classmethod
    def empty(cls, layers: int, rows: int, device: torch.device) -> SlotCache:
        """Nothing in it yet."""
        return cls([SlotLayer() for _ in range(layers)], torch.zeros(rows, 0, dtype=torch.bool, device=device))

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, (rows,): the position of its next token."""
        return self.real.sum(dim=1)

    @property
    def slots(self) -> int:
        """Slots in use."""
        return int(self.real.shape[1])

    def extend(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Announces new slots, of which ``real`` (rows, new) says which hold a token.

        Returns:
            Position ids (rows, new) and the attention mask (rows, 1, new, slots) of the new tokens.
        """
        before = self.lengths[:, None]
        positions = before + (real.long().cumsum(dim=1) - 1).clamp(min=0)
        new = real.shape[1]
        past = self.real[:, None, :].expand(-1, new, -1)
        causal = torch.ones(new, new, dtype=torch.bool, device=real.device).tril()
        own = causal[None] & real[:, None, :] | torch.eye(new, dtype=torch.bool, device=real.device)[None]
        self.real = torch.cat([self.real, real], dim=1)
        return positions, torch.cat([past, own], dim=2)[:, None]

    def take(self, rows: Tensor, keep: Tensor | None = None) -> SlotCache:
        """A copy of some rows (one may be taken several times), each cut to its first ``keep`` (len(rows),) tokens."""
        real = self.real[rows]
        if keep is not None:
            real = real & (real.long().cumsum(dim=1) <= keep[:, None])
        return SlotCache([layer.take(rows) for layer in self.layers], real)

    def put_back(self, other: SlotCache, rows: Tensor, since: int) -> None:
        """Takes over what ``other``, made by `take`, added after slot ``since``."""
        added = torch.zeros(self.real.shape[0], other.slots - since, dtype=torch.bool, device=self.real.device)
        added[rows] = other.real[:, since:]
        self.real = torch.cat([self.real[:, :since], added], dim=1)
        for layer, part in zip(self.layers, other.layers, strict=True):
            layer.put_back(part, rows, since)
