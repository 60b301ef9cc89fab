"""The conversations of files of JSON objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.objects import json_lines
from lightning_iterppo.data.importing.records import BadRecord, Built, Place

_EVERY = 64  # records between two reports of progress


def read_lines(files: list[Path], context: Context, make: Callable[[Place, dict[str, Any]], Built]) -> Iterator[Item]:
    """What ``make`` makes of every object."""
    sizes = [path.stat().st_size for path in files]
    whole = max(1, sum(sizes))
    for index, path in enumerate(files):
        before = sum(sizes[:index])
        for place, record, done in json_lines(path):
            if place.number % _EVERY == 0:
                context.advance((before + done) / whole)
            if isinstance(record, BadRecord):
                yield place, record
                continue
            try:
                yield place, make(place, record)
            except BadRecord as bad:
                yield place, bad
