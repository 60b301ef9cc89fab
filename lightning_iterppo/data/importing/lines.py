"""Files with one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.objects import parse
from lightning_iterppo.data.importing.records import BadRecord, Built, Place

_EVERY = 64  # lines between two reports of progress


def read_lines(files: list[Path], context: Context, make: Callable[[Place, dict[str, Any]], Built]) -> Iterator[Item]:
    """What ``make`` makes of every line; empty lines are none."""
    whole = max(1, sum(path.stat().st_size for path in files))
    done = 0
    for path in files:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                done += len(raw)
                if number % _EVERY == 0:
                    context.advance(done / whole)
                place = Place(path, number)
                try:
                    record = parse(raw, first=number == 1)
                    if record is not None:
                        yield place, make(place, record)
                except BadRecord as bad:
                    yield place, bad
