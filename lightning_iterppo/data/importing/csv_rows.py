"""Rows of a CSV file, each with the line that it begins on."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lightning_iterppo.data.importing.records import BadRecord
from lightning_iterppo.errors import LogFormatError

_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """A row: the line it begins on, how many bytes of the file are behind it, and its cells."""

    line: int
    bytes_read: int
    cells: list[str]

    def problem(self, columns: int) -> BadRecord | None:
        """What is wrong with it under a header of so many columns, or None."""
        if len(self.cells) != columns:
            return BadRecord("a row of another length", f"{len(self.cells)} cells, but the header has {columns}")
        if _NOT_UTF8.search("".join(self.cells)):
            return BadRecord("not UTF-8", "convert the file, for example with iconv")
        return None


class _Lines:
    """The lines of a file for `csv.reader`, which does not say how far it has come."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._file:
            self.count += 1
            self.bytes += len(raw)
            yield raw.decode("utf-8-sig" if self.count == 1 else "utf-8", errors="surrogateescape")


def csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """The rows, the header first; empty lines are none.

    Raises:
        LogFormatError: the file is no CSV from some line on: a quote that does not end, or ends inside a cell.
    """
    with open(path, "rb") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        begins = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # The rows behind it cannot be told apart, so nothing can be skipped.
                raise LogFormatError(path, begins, f"not CSV: {error}") from error
            if cells is None:
                return
            if cells:
                yield Row(begins, lines.bytes, cells)
            begins = lines.count + 1
