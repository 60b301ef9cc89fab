"""A flat table, CSV or Parquet, with one message a row; the rows of one conversation may lie anywhere in it.

The rows go to the disk first and come back conversation by conversation.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing import mapping
from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.csv_rows import csv_rows
from lightning_iterppo.data.importing.records import SORTED, BadRecord, Built, Place, Said, text_id
from lightning_iterppo.errors import ConfigError, LogFormatError
from lightning_iterppo.extras import need
from lightning_iterppo.recipe_files import nearest

FIELDS = replace(mapping.FIELDS, conversation="conversation", speaker="speaker", text="text", time="time")
#: The keys of a mapping file that mean something here.
USES = (*mapping.USES, "fields.time", "time_format", "delimiter")
_CELLS = ("speaker", "text", "time", "outcome", "reward", "suggestion", "disposition")
_EVERY = 512  # rows between two reports of progress
_UTC = datetime.timezone.utc


def read(files: list[Path], context: Context) -> Iterator[Item]:
    """The conversations of the files together, in the order of their first rows."""
    whole = max(1, sum(path.stat().st_size for path in files))
    done = 0
    for index, path in enumerate(files):
        if path.suffix in (".csv", ".tsv"):
            for bytes_read in _store_csv(path, index, context):
                context.advance((done + bytes_read) / whole / 2)
        elif path.suffix == ".parquet":
            for share in _store_parquet(path, index, context):
                context.advance((done + share * path.stat().st_size) / whole / 2)
        else:
            raise ConfigError(f"{path}: a .csv, .tsv or .parquet file was expected")
        done += path.stat().st_size
    yield from conversations(files, context)


def conversations(files: Sequence[Path], context: Context) -> Iterator[Item]:
    """The conversations of the rows that were stored: the second half of the work."""
    count = max(1, context.scratch.count_threads())
    for number, (name, rows) in enumerate(context.scratch.threads()):
        if number % _EVERY == 0:
            context.advance(0.5 + number / count / 2)
        yield _assembled(name, rows, files, context)


class Columns:
    """Where the columns of a table are.

    Args:
        path: the table.
        header: the names of its columns.
        context: with the names that are looked for.

    Raises:
        LogFormatError: one that is needed, or that the mapping names, is not there.
    """

    def __init__(self, path: Path, header: Sequence[str], context: Context) -> None:
        fields, given = context.fields, context.mapping.fields
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise LogFormatError(path, 1, f"two columns are called {twice!r}")
        self.names = [getattr(fields, cell) for cell in ("conversation", *_CELLS)]
        for cell in ("conversation", *_CELLS):
            name = getattr(fields, cell)
            if name not in header and (cell in ("conversation", "speaker", "text") or getattr(given, cell)):
                raise LogFormatError(
                    path,
                    1,
                    f"there is no column {name!r}: {nearest(name, header)} --mapping with "
                    f"fields: {{{cell}: NAME}} says what it is called",
                )
        self.places = [header.index(name) if name in header else None for name in self.names]
        self.others = [name for name in header if name not in self.names]

    def store(self, row: Sequence[Any], place: Place, file: int, problem: BadRecord | None, context: Context) -> None:
        """Notes a row, or why it is none."""
        context.rows += 1
        cells = [None if at is None or at >= len(row) else _plain(row[at]) for at in self.places]
        try:
            name = text_id(cells[0])
            if name is None:
                raise BadRecord("a row without a conversation", f"{self.names[0]!r} is empty")
            _check_text(name)
        except BadRecord as bad:
            context.drop_row(place, problem or bad)
            return
        if problem is None:
            try:
                for column, cell in zip(self.names, cells, strict=True):
                    _check_text(cell)
                    # SQLite would keep it as nothing, and an outcome that went wrong is not one that is not known.
                    if isinstance(cell, float) and not math.isfinite(cell):
                        hint = "leave it empty (null) where it is not known"
                        raise BadRecord("not a number", f"{column!r} is {cell!r}; {hint}")
            except BadRecord as bad:
                problem = bad
        if problem is not None:
            cells = [None] * len(cells)
        told = None if problem is None else (problem.reason, problem.detail)
        context.scratch.add_row(name, file, place.number, told, cells[1:])
        for other in self.others:
            context.not_kept[other] += 1


def _store_csv(path: Path, file: int, context: Context) -> Iterator[int]:
    delimiter = "\t" if path.suffix == ".tsv" else context.mapping.delimiter
    columns: Columns | None = None
    width = 0
    for row in csv_rows(path, delimiter):
        if columns is None:
            columns, width = Columns(path, row.cells, context), len(row.cells)
            continue
        columns.store(row.cells, Place(path, row.line), file, row.problem(width), context)
        if context.rows % _EVERY == 0:
            yield row.bytes_read
    if columns is None:
        raise LogFormatError(path, 1, "the file is empty: a header with the names of the columns was expected")


def _store_parquet(path: Path, file: int, context: Context) -> Iterator[float]:
    parquet = need("pyarrow.parquet", f"to read {path}", "import")
    arrow = need("pyarrow", f"to read {path}", "import")
    try:
        with parquet.ParquetFile(path) as opened:
            columns = Columns(path, opened.schema_arrow.names, context)
            wanted = [name for name, at in zip(columns.names, columns.places, strict=True) if at is not None]
            columns.places = [wanted.index(name) if name in wanted else None for name in columns.names]
            whole = max(1, opened.metadata.num_rows)
            number = 0
            for batch in opened.iter_batches(batch_size=_EVERY, columns=wanted):
                lists = [batch.column(name).to_pylist() for name in wanted]
                for row in zip(*lists, strict=True):
                    number += 1
                    columns.store(row, Place(path, number), file, None, context)
                yield number / whole
    except arrow.ArrowInvalid as error:
        raise LogFormatError(path, 0, f"not Parquet: {' '.join(str(error).split())}") from error


def _assembled(name: str, rows: list[tuple[Any, ...]], files: Sequence[Path], context: Context) -> Item:
    """One conversation from its rows, each file, number, problem, detail and `_CELLS`."""
    first = place = Place(files[rows[0][0]], rows[0][1])
    order: list[int] = []
    try:
        outcome: float | None = None
        said: list[Said] = []
        times: list[tuple[str, float] | None] = []
        for file, number, problem, detail, *cells in rows:
            place = Place(files[file], number)
            if problem is not None:
                raise BadRecord(problem, detail)
            speaker, text, time, told, reward, suggestion, disposition = cells
            value = context.builder.number(told, repr(context.fields.outcome))
            if value is not None:
                if outcome is not None and value != outcome:
                    raise BadRecord("two outcomes", f"{value:g} here, {outcome:g} in a row before")
                outcome = value
            times.append(_moment(time, context.mapping.time_format))
            said.append(Said(speaker, "" if text is None else text, suggestion, disposition, reward))
        place = first
        order = _order(times)
        built: Built = context.builder.build(name, [said[at] for at in order], context.outcomes.of(name, outcome))
        built.notes[SORTED] += order != list(range(len(order)))
        return place, built
    except BadRecord as bad:
        if bad.message is not None:
            file, number = rows[order[bad.message]][:2]
            place = Place(files[file], number)
        return place, bad


def _order(times: list[tuple[str, float] | None]) -> list[int]:
    """The order of the rows: by time where there is one, as they lie otherwise and within one moment."""
    known = [time for time in times if time is not None]
    if not known:
        return list(range(len(times)))
    if len(known) < len(times):
        raise BadRecord("a row without a time", f"{len(times) - len(known)} of {len(times)} rows have none")
    kinds = {kind for kind, _ in known}
    if len(kinds) > 1:
        raise BadRecord("times of two kinds", f"some are {' and some are '.join(sorted(kinds))}")
    return sorted(range(len(known)), key=lambda at: known[at][1])


def _moment(value: Any, form: str | None) -> tuple[str, float] | None:
    """A time as its kind and seconds; times of two kinds cannot be put into order."""
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return "numbers", float(value)
    try:
        if form is not None:
            moment = datetime.datetime.strptime(value, form)
        else:
            try:
                return "numbers", float(value)
            except ValueError:
                moment = datetime.datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
    except ValueError as error:
        hint = f"as {form!r} says" if form else "ISO 8601 or a number; --mapping with time_format says otherwise"
        raise BadRecord("a time that is none", f"{value!r} is not {hint}") from error
    if moment.tzinfo is None:
        return "without a time zone", moment.replace(tzinfo=_UTC).timestamp()
    return "with a time zone", moment.timestamp()


def _plain(value: Any) -> Any:
    """A cell as SQLite keeps it."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


def _check_text(cell: Any) -> None:
    if isinstance(cell, str):
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            raise BadRecord("not UTF-8", "convert the file, for example with iconv") from error
    elif not (cell is None or (isinstance(cell, int) and abs(cell) < 2**63) or isinstance(cell, float)):
        raise BadRecord("a cell of another type", f"text, a number or a time was expected, found {type(cell).__name__}")
