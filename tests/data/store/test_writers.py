"""Several processes write into one store at once: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.data.store import ConversationStore, StoredConversations
from lightning_iterppo.errors import IterPPOError, StoreError

WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture(scope="module")
def talk() -> Any:
    """The conversation of a number, as the processes make it."""
    return runpy.run_path(str(WRITER))["talk"]


def both(work: str, url: str, arguments: tuple[int, int]) -> list[Any]:
    """What two processes say that do something at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, str(WRITER), work, url, str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in arguments
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return list(map(json.loads, said))


def test_two_writers_lose_nothing_and_write_nothing_twice(url: str, talk: Any) -> None:
    found = both("write", url, (0, 40))
    assert [sum(each) for each in zip(*found, strict=True)] == [121, 120]
    with ConversationStore(url) as store:
        talks = {each.id: each for each in store.conversations()}
        assert len(talks) == 121
        for number in range(120):
            each = talks[f"c-{number}"]
            assert (each.outcome, each.turns[0], len(each.turns)) == (1.0, talk(number).turns[0], 2)
            assert len(store.outcomes(each.id)) == 1
        corrections = store.outcomes("c-1000")
        assert [each.revision for each in corrections] == list(range(20))
        assert len({each.value for each in corrections}) == 20 and talks["c-1000"].outcome == corrections[-1].value


def test_of_two_outcomes_at_once_one_is_refused(url: str, talk: Any) -> None:
    with ConversationStore(url) as store:
        store.add([talk(0)])
        found = both("contradict", url, (0, 1))
        (kept,) = [value for value in found if value is not None]
        assert [outcome.value for outcome in store.outcomes("c-0")] == [kept]


def test_a_writer_that_is_killed_leaves_nothing(url: str, talk: Any) -> None:
    with ConversationStore(url) as store:
        store.add([talk(1)])
        words = [sys.executable, str(WRITER), "hang", url, "1200"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "hanging\n"]
            process.kill()
        assert list(store.conversations()) == [talk(1)]
        assert store.add([talk(1), talk(2)]).added == 1


def test_whoever_waits_too_long_is_told(tmp_path: Path, talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "store.db")
    with ConversationStore(url) as store, store.database.writing():
        monkeypatch.setattr("lightning_iterppo.data.store.database.PATIENCE", 0.1)
        with ConversationStore(url, create=False) as other:
            assert list(other.conversations()) == []  # who reads does not wait
            with pytest.raises(StoreError, match=r"store\.db: somebody else has been writing for 0\.1 seconds"):
                other.add([talk(0)])


def test_a_writer_of_postgresql_who_waits_too_long_is_told(
    postgresql: Any, talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql.new_database()
    with ConversationStore(url) as store, store.database.writing():
        monkeypatch.setattr("lightning_iterppo.data.store.database.PATIENCE", 1.0)
        with (
            ConversationStore(url, create=False) as other,
            pytest.raises(StoreError, match="somebody else has been writing for 1 seconds"),
        ):
            other.add([talk(0)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_connections_of_its_own(url: str, talk: Any) -> None:
    with ConversationStore(url) as store:
        store.add([talk(number) for number in range(3)])
        logs = StoredConversations(url)
        assert logs[0] == talk(0)
        child = os.fork()
        if child == 0:
            # Not `sys.exit`: the test's own end is the parent's.
            try:
                os._exit(0 if logs[1] == talk(1) and store.add([talk(3)]).added == 1 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert logs[2] == talk(2) and len(list(store.conversations())) == 4


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(IterPPOError) as caught:
        ConversationStore(f"postgresql://me:secret@/none?host={tmp_path}")
    said = str(caught.value)
    assert "\n" not in said and "secret" not in said and "postgresql://me:***@/none" in said
