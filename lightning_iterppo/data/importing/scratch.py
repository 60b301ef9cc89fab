"""What an import must look up again, on the disk: the memory stays the same for any number of conversations."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

_TABLES = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA temp_store = FILE;
    PRAGMA cache_size = -16000;
    CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;
    CREATE TABLE outcomes (id TEXT PRIMARY KEY, outcome REAL, place TEXT, met INTEGER DEFAULT 0) WITHOUT ROWID;
    CREATE TABLE threads (number INTEGER PRIMARY KEY, id TEXT UNIQUE);
    CREATE TABLE rows (thread INTEGER, file INTEGER, number INTEGER, problem TEXT, detail TEXT,
        speaker, text, time, outcome, reward, suggestion, disposition);
"""


class Scratch:
    """A temporary database of SQLite, which goes away with the process, killed or not."""

    def __init__(self) -> None:
        # The empty name is a private file in SQLite's folder for temporary files, which has no name.
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(_TABLES)
        self._base.execute("BEGIN")
        self._last: tuple[str, int] | None = None

    def close(self) -> None:
        """Removes it."""
        self._base.close()

    def claim(self, name: str, place: str) -> str | None:
        """Notes a conversation's id; where it was seen before, None if it was not."""
        with _disk():
            new = self._base.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (name, place)).rowcount
            if new:
                return None
            (before,) = self._base.execute("SELECT place FROM seen WHERE id = ?", (name,)).fetchone()
            return str(before)

    def add_outcome(self, name: str, outcome: float, place: str) -> tuple[float, str] | None:
        """Notes a delayed outcome; the outcome that the id has already and its place, None if it has none."""
        with _disk():
            row = (name, outcome, place)
            new = self._base.execute("INSERT OR IGNORE INTO outcomes (id, outcome, place) VALUES (?, ?, ?)", row)
            if new.rowcount:
                return None
            value, before = self._base.execute("SELECT outcome, place FROM outcomes WHERE id = ?", (name,)).fetchone()
            return float(value), str(before)

    def take_outcome(self, name: str) -> tuple[float, str] | None:
        """A conversation's delayed outcome and its place, which counts as met from now on."""
        with _disk():
            found = self._base.execute("SELECT outcome, place FROM outcomes WHERE id = ?", (name,)).fetchone()
            if found is None:
                return None
            self._base.execute("UPDATE outcomes SET met = 1 WHERE id = ?", (name,))
            return float(found[0]), str(found[1])

    def outcomes(self) -> Iterator[tuple[str, float]]:
        """All delayed outcomes, by the id."""
        with _disk():
            for name, outcome in self._base.execute("SELECT id, outcome FROM outcomes ORDER BY id"):
                yield str(name), float(outcome)

    def outcomes_not_met(self) -> int:
        """Delayed outcomes that nobody took."""
        (count,) = self._base.execute("SELECT count(*) FROM outcomes WHERE NOT met").fetchone()
        return int(count)

    def add_row(self, name: str, file: int, number: int, problem: tuple[str, str] | None, cells: list[Any]) -> None:
        """Notes a row of a table, of seven cells: speaker, text, time, outcome, reward, suggestion, disposition."""
        with _disk():
            if self._last is None or self._last[0] != name:
                self._base.execute("INSERT OR IGNORE INTO threads (id) VALUES (?)", (name,))
                (thread,) = self._base.execute("SELECT number FROM threads WHERE id = ?", (name,)).fetchone()
                self._last = name, int(thread)
            reason, detail = problem or (None, None)
            self._base.execute(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._last[1], file, number, reason, detail, *cells),
            )

    def count_threads(self) -> int:
        """Conversations that rows were noted of."""
        (count,) = self._base.execute("SELECT count(*) FROM threads").fetchone()
        return int(count)

    def threads(self) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        """Every conversation in the order of its first row, with its rows: file, number, problem, detail and cells."""
        with _disk():
            found = self._base.execute(
                "SELECT thread, id, file, rows.number, problem, detail, speaker, text, time, outcome, reward, "
                "suggestion, disposition FROM rows JOIN threads ON threads.number = thread ORDER BY thread, rows.rowid"
            )
            for _, rows in groupby(found, key=itemgetter(0)):
                held = list(rows)
                yield str(held[0][1]), [row[2:] for row in held]


@contextmanager
def _disk() -> Iterator[None]:
    """A full disk as the error that it is elsewhere."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "disk is full" in str(error):
            raise OSError(errno.ENOSPC, "no space left for temporary files (TMPDIR says where they are)") from error
        raise
