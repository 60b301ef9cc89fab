"""Stores to test with: a SQLite file, and a database of a PostgreSQL server that the tests start themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn


def programs() -> Path | None:
    """Where the newest server's programs are: on Debian they are not in PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).parent


def skip(reason: str) -> NoReturn:
    """Skips, and says so at the end too, where reasons are shown only if they are asked for."""
    warnings.warn(f"the store was tested on SQLite only: {reason}", pytest.PytestWarning, stacklevel=2)
    pytest.skip(reason)


@dataclass
class Server:
    """A running PostgreSQL, which listens on a socket in its directory and nowhere else."""

    place: Path

    def new_database(self) -> str:
        """The URL of an empty schema: a database of its own for each test would be thousands of files."""
        import psycopg

        name = f"store_{uuid.uuid4().hex[:12]}"
        url = f"postgresql://tester@/postgres?host={self.place}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[call-overload]
        return f"{url}&options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    where = programs()
    if where is None:
        skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    who: dict[str, Any] = {}
    # Not pytest's temporary directory: only its owner may enter that, and its path is too long for a socket.
    place = Path(tempfile.mkdtemp(prefix="pg-"))
    if os.geteuid() == 0:  # for whom the server does not start
        import pwd

        user = next(
            (name for name in ("postgres", "nobody") if name in {each.pw_name for each in pwd.getpwall()}), None
        )
        if user is None:
            skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
        shutil.chown(place, user)
        who = {"user": user, "extra_groups": []}
    data, log = place / "data", place / "log"

    def run(*words: str | Path) -> None:
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd="/", **who)
        if done.returncode:
            said = log.read_text() if log.exists() else ""
            raise RuntimeError(f"{words[0]}: {done.stderr}{said}")

    try:
        run(where / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        options = f"-k {place} -c listen_addresses='' -c fsync=off"
        run(where / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            yield Server(place)
        finally:
            run(where / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(place)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    found: str = request.getfixturevalue("postgresql").new_database()
    return found


@pytest.fixture
def talk() -> Callable[..., Conversation]:
    """Makes a conversation of two turns, the second with a suggestion that was edited."""

    def make(name: str = "a", *, outcome: float | None = None, said: str = "Grüß Gott", **more: Any) -> Conversation:
        made = Suggestion("Buy!", (5, 2**31 - 1, 0), (-0.1, -1e-300, -123.456789012345678), "iteration-001")
        turns = (
            Turn("", said, Suggestion(said, (), (), None), "accepted"),
            Turn("How much?", "10 €", made, "edited", reward=outcome or 0.0),
        )
        return Conversation(name, turns, outcome=outcome, **more)

    return make
