"""Persuasion for Good (Wang et al. 2019) as files of the chat form with ``donation_usd``: did the persuadee donate?

A FILE may be the directory that holds ``train.jsonl`` and ``validation.jsonl``. The outcome is 0 or 1; with
``fields: {outcome: donation_usd}`` in the mapping it is the amount.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing import chat
from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.lines import read_lines
from lightning_iterppo.data.importing.records import BadRecord, Built, Place
from lightning_iterppo.errors import ConfigError

FIELDS = chat.FIELDS
USES = ("fields.outcome", "empty_messages")
_FILES = ("train.jsonl", "validation.jsonl")
_AMOUNT = "donation_usd"


def read(files: list[Path], context: Context) -> Iterator[Item]:
    """The conversations of the files, or of the directories that hold them."""

    def make(place: Place, record: dict[str, Any]) -> Built:
        amount = context.builder.number(record.get(_AMOUNT), repr(_AMOUNT))
        if amount is None or amount < 0:
            raise BadRecord("no donation", f"{_AMOUNT!r} must be 0 or an amount, found {record.get(_AMOUNT)!r}")
        donated = context.builder.number(record.get("outcome"), "'outcome'")
        if donated != float(amount > 0):
            raise BadRecord("an outcome that is not the donation", f"outcome {donated}, but {amount:g} USD were given")
        return chat.from_record(context, place, record)

    found = []
    for path in files:
        inside = [path / name for name in _FILES if (path / name).is_file()] if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path} holds neither {_FILES[0]} nor {_FILES[1]}")
        found += inside
    return read_lines(found, context, make)
