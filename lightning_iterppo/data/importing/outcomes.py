"""Outcomes that come later than the logs: a file of ids and outcomes, joined by the conversation's id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing.csv_rows import csv_rows
from lightning_iterppo.data.importing.mapping import Mapping
from lightning_iterppo.data.importing.objects import json_lines
from lightning_iterppo.data.importing.records import BadRecord, Builder, Place, as_error, text_id
from lightning_iterppo.data.importing.scratch import Scratch
from lightning_iterppo.errors import ConfigError, LogFormatError


class DelayedOutcomes:
    """Delayed outcomes, kept on the disk.

    Args:
        scratch: where.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self.path: Path | None = None
        #: Outcomes in the file: different ids, the same said again, ids without one, and broken lines by reason.
        self.read = self.repeated = self.empty = 0
        self.dropped: Counter[str] = Counter()

    def load(self, path: Path, mapping: Mapping, builder: Builder, skip_bad: bool) -> None:
        """Reads a CSV file, or one JSON object a line.

        Raises:
            LogFormatError: a line is broken and not to be skipped, or two lines give one conversation two outcomes.
            ConfigError: the file is neither.
        """
        self.path = path
        if path.suffix == ".csv":
            records = _csv_records(path, mapping)
        elif path.suffix in (".jsonl", ".json", ".ndjson"):
            records = ((place, record) for place, record, _ in json_lines(path))
        else:
            raise ConfigError(f"outcomes {path}: a .csv or a .jsonl file was expected")
        columns = mapping.outcomes
        for place, record in records:
            try:
                if isinstance(record, BadRecord):
                    raise record
                name = text_id(record.get(columns.conversation))
                if name is None:
                    found = ", ".join(map(repr, list(record)[:8]))
                    raise BadRecord("an outcome without an id", f"no {columns.conversation!r}; found {found}")
                if columns.outcome not in record:
                    raise BadRecord("no outcome", f"there is no {columns.outcome!r}")
                value = builder.number(record[columns.outcome], repr(columns.outcome))
            except BadRecord as bad:
                if not skip_bad:
                    raise as_error(place, bad) from bad
                self.dropped[bad.reason] += 1
                continue
            if value is None:
                self.empty += 1
                continue
            before = self._scratch.add_outcome(name, value, str(place))
            if before is None:
                self.read += 1
            elif before[0] == value:
                self.repeated += 1
            else:
                # Which of them holds nobody can tell here, so this is no record to skip.
                both = f"conversation {name!r} has the outcome {value:g} here and {before[0]:g} at {before[1]}"
                raise place.error(f"{both}; leave one of them")

    def holds(self, name: str) -> bool:
        """Whether the file has the outcome of a conversation."""
        return self.path is not None and self._scratch.take_outcome(name) is not None

    def of(self, name: str, own: float | None) -> float | None:
        """A conversation's outcome: its own, or the delayed one.

        Raises:
            BadRecord: it has both, and they differ.
        """
        if self.path is None:
            return own
        found = self._scratch.take_outcome(name)
        if found is None:
            return own
        value, place = found
        if own is not None and own != value:
            raise BadRecord("two outcomes", f"the log says {own:g}, and {place} says {value:g}")
        return value


def _csv_records(path: Path, mapping: Mapping) -> Iterator[tuple[Place, dict[str, Any] | BadRecord]]:
    needed = [mapping.outcomes.conversation, mapping.outcomes.outcome]
    header: list[str] = []
    for row in csv_rows(path, mapping.delimiter):
        if not header:
            header = row.cells
            missing = [name for name in needed if name not in header]
            if missing:
                raise LogFormatError(
                    path,
                    row.line,
                    f"there is no column {missing[0]!r}, there are {', '.join(header)}; --mapping with "
                    "outcomes: {conversation: NAME, outcome: NAME} says what they are called",
                )
            continue
        problem = row.problem(len(header))
        yield Place(path, row.line), problem or dict(zip(header, row.cells, strict=False))
