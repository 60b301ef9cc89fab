"""What every format's reader is given, and what it gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lightning_iterppo.data.importing.mapping import Fields, Mapping
from lightning_iterppo.data.importing.outcomes import DelayedOutcomes
from lightning_iterppo.data.importing.records import BadRecord, Builder, Built, Place, as_error
from lightning_iterppo.data.importing.scratch import Scratch

#: One record: where it begins, and the conversation, or why it is none.
Item = tuple[Place, Built | BadRecord]


@dataclass
class Context:
    """What a reader works with.

    Args:
        mapping: the owner's names and choices.
        fields: the names of the fields: the mapping's over the format's.
        builder: makes the conversations.
        outcomes: the delayed ones.
        scratch: what is kept on the disk.
        skip_bad: whether bad records are left out.
        advance: to be called with the share of the input that has been gone through, 0 to 1.
        rows: rows of tables that were read, and those that belong to no conversation, by reason.
        not_kept: fields that no conversation keeps, with how often they were met.
    """

    mapping: Mapping
    fields: Fields
    builder: Builder
    outcomes: DelayedOutcomes
    scratch: Scratch
    skip_bad: bool
    advance: Callable[[float], None]
    rows: int = 0
    rows_dropped: Counter[str] = field(default_factory=Counter)
    not_kept: Counter[str] = field(default_factory=Counter)

    def drop_row(self, place: Place, reason: BadRecord) -> None:
        """A row that cannot be given to any conversation.

        Raises:
            LogFormatError: bad records are not to be skipped.
        """
        if not self.skip_bad:
            raise as_error(place, reason)
        self.rows_dropped[reason.reason] += 1


Reader = Callable[[list[Path], Context], Iterator[Item]]
