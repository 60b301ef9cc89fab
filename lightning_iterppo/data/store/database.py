"""The connection to a store's database: one writer at a time, and errors of the database as one line."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from lightning_iterppo.data.store.urls import without_password
from lightning_iterppo.errors import ConfigError, StoreError
from lightning_iterppo.extras import need

#: How long a writer waits for another one, in seconds.
PATIENCE: Final = 120.0
#: The lock that writers of a PostgreSQL store hold, a number that nobody else is likely to use for something else.
_WRITER: Final = 0x69746572_70706F
_DENIED: Final = "42501"  # PostgreSQL's code for a missing permission


class Database:
    """A database by its URL; connects when it is first used, and again in a process that was forked.

    There is one writer at a time, on both kinds of database: SQLite cannot do otherwise, and on PostgreSQL a lock makes
    it so. What a writer finds is then what everybody has written, the numbers of rows are in the order in which they
    came, and two writers cannot wait for each other for ever. Nobody who reads waits.

    Args:
        url: ``postgresql://USER@HOST/NAME``, ``sqlite:///FILE``, or a path, which is a SQLite file.

    Raises:
        ConfigError: it is no URL of one of them, or the package for PostgreSQL is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self._engine: Engine | None = None
        self._process = 0

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database."""
        return Path(self._url.database or "") if self._url.get_backend_name() == "sqlite" else None

    def __str__(self) -> str:
        """As it may be shown, without a password."""
        if self.file is not None:
            return str(self.file)
        return without_password(self._url.set(drivername="postgresql").render_as_string(hide_password=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_process": 0}

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that only reads.

        Raises:
            StoreError: the database cannot be reached.
        """
        with self._explained(), self._connected().begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction of the one writer: all of it is kept, or, after an exception, nothing.

        Raises:
            StoreError: the database cannot be reached or written, or another writer took longer than `PATIENCE`.
            OSError: the disk is full.
        """
        with self._explained(), self._connected().execution_options(writes=True).begin() as connection:
            if self.file is None:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{round(PATIENCE)}s'")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER)))
            yield connection

    def close(self) -> None:
        """Closes its connections; using it once more opens others."""
        if self._engine is not None:
            # Connections that a parent process opened are the parent's to close.
            self._engine.dispose(close=self._process == os.getpid())
            self._engine = None

    def _connected(self) -> Engine:
        if self._engine is not None and self._process != os.getpid():
            self.close()
        if self._engine is None:
            self._engine, self._process = self._connect(), os.getpid()
        return self._engine

    def _connect(self) -> Engine:
        # Parameters hold what people said, which has no place in a traceback.
        if self.file is None:
            # Read committed: a writer that waited for its lock must see what the one before it wrote.
            return sa.create_engine(
                self._url, hide_parameters=True, pool_pre_ping=True, isolation_level="READ COMMITTED"
            )
        if not self.file.parent.is_dir():
            raise StoreError(f"{self}: there is no directory {self.file.parent}")
        engine = sa.create_engine(self._url, hide_parameters=True, connect_args={"timeout": PATIENCE})

        @sa.event.listens_for(engine, "connect")
        def connected(connection: Any, record: Any) -> None:
            # The driver's own idea of when a transaction begins leaves out what makes tables.
            connection.isolation_level = None
            connection.execute("PRAGMA foreign_keys = ON")
            _log_ahead(connection)

        @sa.event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            writes = connection.get_execution_options().get("writes")
            # A writer that began as a reader could find, when it wants to write, that what it read is old.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            said = " ".join(str(error.orig).split())
            if "disk is full" in said or "No space left on device" in said:
                raise OSError(errno.ENOSPC, "No space left on device", str(self)) from error
            reason = self._reason(error, said)
            if reason is None:
                raise
            raise StoreError(f"{self}: {without_password(reason)}") from error

    def _reason(self, error: DBAPIError, said: str) -> str | None:
        """Why the database does not do what it should, or None where that is a defect of the library."""
        if "database is locked" in said or "lock timeout" in said:
            return f"somebody else has been writing for {PATIENCE:g} seconds; run it again when that is over"
        if "unable to open database file" in said:
            return "the file cannot be opened; is it a file, and may you read and write it?"
        if "is not a database" in said:
            return "the file is there and is no SQLite database"
        denied = getattr(error.orig, "sqlstate", None) == _DENIED
        # A broken rule or a wrong statement has a class of its own; the rest comes from outside.
        outside = type(error) in (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.DatabaseError)
        return said if denied or outside else None


def _parsed(url: str) -> URL:
    if "://" not in url:
        if not url.strip() or url == ":memory:":
            raise ConfigError(f"{url!r} is no store: give a path, or postgresql://USER@HOST/NAME")
        return URL.create("sqlite", database=str(Path(url).expanduser()))
    try:
        found = make_url(url)
        backend = found.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            f"{without_password(url)!r} is no URL of a database: write postgresql://USER@HOST/NAME, or the path of a "
            "SQLite file"
        ) from error
    if backend == "sqlite":
        if not found.database or found.database == ":memory:" or found.query:
            raise ConfigError(f"{url!r} is no store: a SQLite store is a file, sqlite:///FILE or just its path")
        return URL.create("sqlite", database=found.database)
    if backend not in ("postgresql", "postgres"):
        raise ConfigError(
            f"{without_password(url)!r}: a store is a SQLite file or postgresql://…, and {backend} is neither"
        )
    need("psycopg", "for a store on PostgreSQL", "store")
    return found.set(drivername="postgresql+psycopg")


def _log_ahead(connection: Any) -> None:
    """Lets others read while one writes. Whoever opens a new file first changes it, which does not wait by itself."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
