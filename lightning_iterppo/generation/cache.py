"""A key-value cache whose rows are independent: the token with position n of a row lies in the row's slot n.

Rows of different lengths leave no holes, so what attention looks at is as long as the longest row, however many rows
have come and gone. What lies behind a row's end is stale; the mask hides it until it is written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_STEP = 64  # room is made in multiples of this


class SlotLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, slots, width); transformers' own copies all on every token.

    A head's slots lie one behind the other, which is how attention reads them: a quarter faster on a processor than
    with the heads of a slot side by side, in which a new token would be written in one piece.

    `SlotCache.extend` says where the next tokens go (``places``), how many slots are in use then (``stop``), how many
    attention is given (``seen``) and for how many there should be room.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None
        self.places: tuple[Tensor, Tensor] | None = None  # rows (rows, 1) and slots (rows, new)
        self.stop = 0
        self.seen = 0  # slots that attention is given
        self.room = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (rows, heads, new, width) and gives all slots that are seen in the same form."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.key_buffer is None or self.value_buffer is None:
            self.key_buffer, self.value_buffer = key_states[:, :, :0], value_states[:, :, :0]
        self.key_buffer, self.value_buffer = _grown(self.key_buffer, self.room), _grown(self.value_buffer, self.room)
        assert self.places is not None
        self.key_buffer.transpose(1, 2)[self.places] = key_states.transpose(1, 2)
        self.value_buffer.transpose(1, 2)[self.places] = value_states.transpose(1, 2)
        self.keys = self.key_buffer[:, :, : self.seen]
        self.values = self.value_buffer[:, :, : self.seen]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Slots in use."""
        return self.stop

    def take(self, rows: Tensor, room: int) -> SlotLayer:
        """A copy of the first ``room`` slots of some rows."""
        other = SlotLayer()
        assert self.key_buffer is not None and self.value_buffer is not None
        other.lazy_initialization(self.key_buffer, self.value_buffer)
        other.key_buffer = self.key_buffer[:, :, :room].index_select(0, rows)
        other.value_buffer = self.value_buffer[:, :, :room].index_select(0, rows)
        return other

    def put(
        self, rows: Sequence[int], other: SlotLayer, source: Sequence[int], since: int, stop: int, room: int
    ) -> None:
        """Takes over the slots ``since`` to ``stop`` of some rows of ``other``, with room for ``room`` in all."""
        assert self.key_buffer is not None and self.value_buffer is not None
        assert other.key_buffer is not None and other.value_buffer is not None
        self.key_buffer, self.value_buffer = _grown(self.key_buffer, room), _grown(self.value_buffer, room)
        # Row by row: an indexed copy takes four times as long on a processor.
        for row, place in zip(rows, source, strict=True):
            self.key_buffer[row, :, since:stop] = other.key_buffer[place, :, since:stop]
            self.value_buffer[row, :, since:stop] = other.value_buffer[place, :, since:stop]


def _grown(buffer: Tensor, room: int) -> Tensor:
    """The buffer with room for so many slots."""
    rows, heads, slots, width = buffer.shape
    if slots >= room:
        return buffer
    # Zeros, not what memory held: a stale slot is masked out, but 0 times a NaN would still be a NaN.
    larger = buffer.new_zeros(rows, heads, room, width)
    larger[:, :, :slots] = buffer
    return larger


class SlotCache:
    """All layers, and how long each row is.

    Args:
        layers: one a layer of the model.
        lengths: tokens of each row, (rows,), in the memory of the processor.
        room: slots there is room for.
        device: where keys and values are.
        whole: up to how many new tokens attention is given all the room, in one piece, and not only the slots in use.
    """

    def __init__(
        self, layers: list[SlotLayer], lengths: Tensor, room: int, device: torch.device, whole: int = 0
    ) -> None:
        self.layers = layers
        self.lengths = lengths
        self.room = room
        self.device = device
        self.whole = whole
        self.cache = Cache(layers=list(layers))

    @classmethod
    def empty(cls, layers: int, rows: int, device: torch.device, whole: int = 0) -> SlotCache:
        """Nothing in it yet."""
        return cls([SlotLayer() for _ in range(layers)], torch.zeros(rows, dtype=torch.long), 0, device, whole)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    @property
    def slots(self) -> int:
        """Slots in use: tokens of the longest row."""
        return int(self.lengths.max())

    def extend(self, counts: Tensor, new: int) -> tuple[Tensor, Tensor]:
        """Announces ``new`` tokens a row, of which the first ``counts`` (rows,) are real and the rest fills up.

        Returns:
            Position ids (rows, new) and the attention mask (rows, 1, new, slots seen) of the new tokens.
        """
        stop = self.slots + new
        self._reserve(stop)
        seen = self.room if new <= self.whole else stop
        slots = self.lengths[:, None] + torch.arange(new)
        self.lengths = self.lengths + counts
        # What only fills up is not beyond the positions that the model has.
        positions = torch.minimum(slots, (self.lengths[:, None] - 1).clamp(min=0)).to(self.device)
        places = torch.arange(self.rows)[:, None].to(self.device), slots.to(self.device)
        for layer in self.layers:
            layer.places, layer.stop, layer.seen, layer.room = places, stop, seen, self.room
        return positions, torch.arange(seen, device=self.device) <= places[1][:, None, :, None]

    def take(self, rows: Sequence[int], keep: Sequence[int] | None = None) -> SlotCache:
        """A copy of some rows (one may be taken several times), each cut to its first ``keep`` tokens."""
        index = torch.tensor(rows)
        lengths = self.lengths[index]
        if keep is not None:
            lengths = torch.minimum(lengths, torch.tensor(keep))
        room = min(self.room, _rounded(int(lengths.max()) + _STEP))
        taken = [layer.take(index.to(self.device), room) for layer in self.layers]
        return SlotCache(taken, lengths, room, self.device, self.whole)

    def put(
        self, rows: Sequence[int], other: SlotCache, source: Sequence[int], keep: Sequence[int], since: int = 0
    ) -> None:
        """Makes ``rows`` what the first ``keep`` tokens of the rows ``source`` of another cache are.

        Args:
            rows: rows of this cache.
            other: the other cache.
            source: as many rows of it.
            keep: tokens of each.
            since: before this slot they are equal already.
        """
        stop = max(keep)
        self._reserve(stop)
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.put(rows, theirs, source, since, stop, self.room)
        self.lengths = self.lengths.index_copy(0, torch.tensor(rows), torch.tensor(keep))

    def clear(self, rows: Sequence[int]) -> None:
        """Empties some rows."""
        self.lengths = self.lengths.index_fill(0, torch.tensor(rows, dtype=torch.long), 0)

    def _reserve(self, slots: int) -> None:
        # By a part of what there is, so that a conversation that grows and grows is copied a few times in all.
        if slots > self.room:
            self.room = _rounded(max(slots, self.room * 9 // 8))


def _rounded(slots: int) -> int:
    return -(-slots // _STEP) * _STEP
