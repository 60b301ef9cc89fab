"""What is put into a store comes out of it equal, once, and stays; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.conversation_file import outcomes_known, turn_counts
from lightning_iterppo.data.store import ConversationStore, StoredConversations, conversation_store
from lightning_iterppo.data.turns import split_conversations
from lightning_iterppo.data.views import View, select
from lightning_iterppo.errors import ConfigError, LogDataError, StoreError

Make = Callable[..., Conversation]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_store, "BATCH", 3)


def content(store: ConversationStore) -> list[Conversation]:
    return list(store.conversations())


# -- conversations --------------------------------------------------------------------------------------------------


def test_conversations_come_back_equal(url: str, talk: Make, small_batches: None) -> None:
    odd = "half \udc80, null \0, \x1a0041, \\, '; DROP TABLE turns; --, 🥾\r\n"
    tokens = Suggestion(odd, tuple(range(300)), tuple(-1 / (3 + each) for each in range(300)), odd)
    given = [
        talk("plain"),
        talk("known", outcome=0.1 + 0.2, seed=-(2**63), policy_version="iteration-001"),
        Conversation(odd, (Turn(odd, odd, tokens, "rejected", -1e-320),), odd, odd, -2.5, 2**63 - 1, odd),
        talk("more", metadata={"ü": [1, 2.5, None, True, {"x": "\0\udc80"}], "big": 2**70}),
        *(talk(f"many-{number}", outcome=number % 2) for number in range(7)),
    ]
    with ConversationStore(url) as store:
        assert store.add(given) == conversation_store.Added(added=11)
        assert content(store) == given
    with ConversationStore(url, create=False) as again:
        assert content(again) == given
        assert [type(token) for token in content(again)[2].turns[0].suggestion.token_ids[:2]] == [int, int]  # type: ignore[union-attr]


def test_the_same_conversation_again_is_skipped(url: str, talk: Make, small_batches: None) -> None:
    with ConversationStore(url) as store:
        store.add([talk("a"), talk("b", outcome=1.0)])
        found = store.add([talk("b", outcome=1.0), talk("a"), talk("c"), talk("c"), talk("d"), talk("d")])
        assert (found.added, found.known) == (2, 4)
        assert [each.id for each in content(store)] == ["a", "b", "c", "d"]


def test_another_conversation_with_the_id_is_refused_and_nothing_is_added(
    url: str, talk: Make, small_batches: None
) -> None:
    with ConversationStore(url) as store:
        store.add([talk("a")])
        for others in ([talk("a", said="Servus")], [talk("x"), talk("x", said="Servus")]):
            many = [*(talk(f"new-{number}") for number in range(10)), *others]
            with pytest.raises(StoreError, match=rf"conversation '{others[-1].id}' is in the store already"):
                store.add(many)
        with pytest.raises(StoreError, match="with no known outcome, and comes again with the outcome 1"):
            store.add([talk("a", outcome=1.0)])
        assert content(store) == [talk("a")]


def test_a_source_that_fails_leaves_nothing(url: str, talk: Make, small_batches: None) -> None:
    def broken() -> object:
        yield from (talk(str(number)) for number in range(8))
        raise OSError("gone")

    with ConversationStore(url) as store:
        with pytest.raises(OSError, match="gone"):
            store.add(broken())  # type: ignore[arg-type]
        assert content(store) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": ""}, "has no id"),
        ({"id": "x" * 501}, "has 501 characters"),
        ({"turns": ()}, "conversation 'a' cannot be stored: it has no turn"),
        ({"seed": "seven"}, "whole number of 64 bits, found 'seven'"),
        ({"seed": 2**63}, "64 bits"),
        ({"metadata": {"x": {1, 2}}}, "metadata is not what JSON can hold"),
        ({"metadata": {1: "x"}}, "metadata"),
        ({"metadata": {"x": float("nan")}}, "metadata"),
        ({"outcome": float("inf")}, "outcome must be finite"),
        ({"turns": (Turn("", "hi", reward=float("nan")),)}, "turn 0: its reward must be finite"),
        ({"turns": (Turn("", "hi", disposition="lost"),)}, "turn 0: there is no disposition 'lost'"),  # type: ignore[arg-type]
        ({"turns": (Turn("", "hi", Suggestion("hi", (2**31,)), "accepted"),)}, "token ids must be .* 32 bits"),
        ({"turns": (Turn("", "hi", Suggestion("hi", (1,), (float("-inf"),))),)}, "log-probabilities must be finite"),
    ],
)
def test_what_cannot_be_given_back_is_refused(tmp_path: Path, talk: Make, change: object, reason: str) -> None:
    with ConversationStore(str(tmp_path / "s.db")) as store:
        with pytest.raises(StoreError, match=reason):
            store.add([talk("b"), replace(talk("a"), **change)])  # type: ignore[arg-type]
        assert content(store) == []


def test_conversations_are_chosen(url: str, talk: Make, small_batches: None) -> None:
    with ConversationStore(url) as store:
        store.add([talk("log", outcome=1.0), talk("unknown")])
        for iteration in (0, 1):
            version = f"iteration-{iteration}"
            made = [talk(f"{iteration}-{number}", outcome=0.0, policy_version=version) for number in range(4)]
            store.add(made, run="mine", iteration=iteration)
        store.add([talk("other", policy_version="iteration-1")], run="other", iteration=1)

        def chosen(**which: object) -> list[str]:
            return [each.id for each in store.conversations(**which)]  # type: ignore[arg-type]

        assert chosen(run="mine", iteration=1) == ["1-0", "1-1", "1-2", "1-3"]
        assert chosen(policy_versions="iteration-1") == ["1-0", "1-1", "1-2", "1-3", "other"]
        assert chosen(policy_versions=["iteration-1"], known_outcomes=True) == ["1-0", "1-1", "1-2", "1-3"]
        assert len(chosen(known_outcomes=True)) == 9 and len(chosen()) == 11 and chosen(run="nobody") == []


def test_a_reader_sees_the_moment_at_which_it_began(url: str, talk: Make, small_batches: None) -> None:
    with ConversationStore(url) as store:
        store.add(talk(str(number)) for number in range(5))
        reading = store.conversations()
        seen = [next(reading)]
        store.add([talk("late")])
        store.record_outcome("4", 1.0)
        seen += list(reading)
        assert [each.id for each in seen] == list("01234") and seen[-1].outcome is None
        assert [each.outcome for each in content(store)] == [None, None, None, None, 1.0, None]


# -- outcomes -------------------------------------------------------------------------------------------------------


def test_an_outcome_may_come_later(url: str, talk: Make) -> None:
    with ConversationStore(url) as store:
        store.add([talk("a"), talk("b")])
        assert content(store)[0].outcome is None and store.outcomes("a") == ()
        assert store.record_outcome("a", 1.0) and not store.record_outcome("a", 1.0)
        first, second = content(store)
        # Nobody said what earned it, so the last turn did, as in an import.
        assert (first.outcome, [turn.reward for turn in first.turns]) == (1.0, [0.0, 1.0])
        assert second == talk("b")
        (found,) = store.outcomes("a")
        assert (found.value, found.revision) == (1.0, 0)
        assert abs((datetime.now(timezone.utc) - found.recorded_at).total_seconds()) < 60
        # Whoever wrote the conversation, or what has become of it, again, writes nothing new.
        assert store.add([talk("a"), first]).known == 2


def test_rewards_may_come_with_it(url: str, talk: Make) -> None:
    with ConversationStore(url) as store:
        store.add([talk("a"), talk("b")])
        assert store.record_outcome("a", 1.0, [0.75, 0.25])
        assert not store.record_outcome("a", 1.0, [0.75, 0.25]) and not store.record_outcome("a", 1.0)
        assert [turn.reward for turn in content(store)[0].turns] == [0.75, 0.25]
        for rewards, reason in (
            ([1.0], "1 rewards for 2 turns"),
            ([1.0, 1.0], "they add up to 2"),
            ([0.0, 0.0], "they are all 0"),
            ([float("nan"), 1.0], "must be finite"),
        ):
            with pytest.raises(StoreError, match=f"conversation 'b' cannot be recorded.*{reason}"):
                store.record_outcome("b", 1.0, rewards)
        assert store.outcomes("b") == ()


def test_rewards_that_were_known_must_be_the_outcome(url: str, talk: Make) -> None:
    earned = replace(talk("a"), turns=(Turn("", "x", reward=0.5), Turn("", "y", reward=0.5)))
    with ConversationStore(url) as store:
        store.add([earned])
        with pytest.raises(StoreError, match=r"add up to 1, and the outcome is 2.*give what each turn earned"):
            store.record_outcome("a", 2.0)
        assert store.record_outcome("a", 1.0)
        assert content(store) == [replace(earned, outcome=1.0)]


def test_a_second_outcome_is_refused_unless_it_corrects_the_first(url: str, talk: Make) -> None:
    with ConversationStore(url) as store:
        store.add([talk("a"), talk("b", outcome=1.0)])
        store.record_outcome("a", 1.0)
        for name in ("a", "b"):
            with pytest.raises(StoreError, match=f"'{name}' has the outcome 1 already, and 0 is another"):
                store.record_outcome(name, 0.0)
            assert store.record_outcome(name, 0.0, correct=True)
            assert store.record_outcome(name, 3.0, correct=True)
            assert [each.value for each in store.outcomes(name)] == [1.0, 0.0, 3.0]
        assert [each.outcome for each in content(store)] == [3.0, 3.0]
        assert [[turn.reward for turn in each.turns] for each in content(store)] == [[0.0, 3.0]] * 2
        assert store.add([talk("b", outcome=1.0)]).known == 1  # as it was added
    several = replace(talk("c"), turns=(Turn("", "x", reward=0.5), Turn("", "y", reward=0.5)), outcome=1.0)
    with ConversationStore(url) as store:
        store.add([several])
        with pytest.raises(StoreError, match="give what each turn earned"):
            store.record_outcome("c", 0.5, correct=True)
        assert store.record_outcome("c", 0.5, [0.5, 0.0], correct=True)


def test_many_outcomes_are_recorded_or_none(url: str, talk: Make, small_batches: None) -> None:
    with ConversationStore(url) as store:
        store.add(talk(str(number)) for number in range(6))
        found = store.record_outcomes([("0", 1.0), ("nobody", 1.0), ("1", 0.0), ("0", 1.0), ("2", 0.0)])
        assert (found.recorded, found.repeated, found.unmatched) == (3, 1, 1)
        with pytest.raises(StoreError, match="'2' has the outcome 0 already"):
            store.record_outcomes([*((str(number), 1.0) for number in (3, 4, 5)), ("2", 1.0)])
        assert [each.outcome for each in content(store)] == [1.0, 0.0, 0.0, None, None, None]
        with pytest.raises(StoreError, match="has no conversation 'nobody'"):
            store.record_outcome("nobody", 1.0)
        with pytest.raises(StoreError, match="has no conversation 'nobody'"):
            store.outcomes("nobody")


# -- iterations, and what stays -------------------------------------------------------------------------------------


def test_iterations_are_kept_with_their_figures(url: str) -> None:
    figures = {"collected": {"ci95": (0.1, 0.3)}, "critic": {"auroc": None}}
    read_back = {"collected": {"ci95": [0.1, 0.3]}, "critic": {"auroc": None}}
    with ConversationStore(url) as store:
        assert store.add_iteration("mine", 0, figures, policy_version="v0")
        assert not store.add_iteration("mine", 0, figures, policy_version="v0")
        assert store.add_iteration("other", 0, {})
        with pytest.raises(StoreError, match="other figures of iteration 0 of the run 'mine'"):
            store.add_iteration("mine", 0, {}, policy_version="v0")
        (found,) = store.iterations("mine")
        assert (found.run, found.iteration, found.policy_version, found.figures) == ("mine", 0, "v0", read_back)
        assert [each.run for each in store.iterations()] == ["mine", "other"]


#: Of each table what names a row, and a column beside that.
COLUMNS = {
    "conversations": (("id",), "closing"),
    "turns": (("conversation", "position"), "message"),
    "suggestions": (("conversation", "position"), "text"),
    "outcomes": (("conversation", "revision"), "value"),
    "iterations": (("run", "iteration"), "figures"),
}


def test_the_database_refuses_to_change_what_is_stored(url: str, talk: Make) -> None:
    with ConversationStore(url) as store:
        store.add([talk("a", outcome=1.0)])
        store.add_iteration("mine", 0, {})
        for table, (key, other) in COLUMNS.items():
            again = f"INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT"
            for statement in (
                f"DELETE FROM {table}",
                f"UPDATE {table} SET {other} = {other}",
                f"{again} ({', '.join(key)}) DO UPDATE SET {other} = EXCLUDED.{other}",
            ):
                with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.database.writing() as connection:
                    connection.exec_driver_sql(statement)
        if store.database.file is None:
            with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.database.writing() as connection:
                connection.exec_driver_sql("TRUNCATE conversations CASCADE")
        assert content(store) == [talk("a", outcome=1.0)]


@pytest.mark.parametrize("table", COLUMNS)
def test_whoever_opens_the_file_replaces_nothing(tmp_path: Path, talk: Make, table: str) -> None:
    """By SQLite's module alone, where REPLACE fires no trigger of a delete."""
    place, (key, other) = tmp_path / "s.db", COLUMNS[table]
    with ConversationStore(str(place)) as store:
        store.add([talk("a", outcome=0.75)])
        store.add_iteration("mine", 0, {})
    with closing(sqlite3.connect(place, isolation_level=None)) as base:
        before = list(base.iterdump())
        names = [name for _, name, *_ in base.execute(f"PRAGMA table_info({table})") if name != "number"]

        def first(**changed: int) -> str:
            return ", ".join(str(changed.get(name, name)) for name in names) + f" FROM {table} LIMIT 1"

        for statement in (
            f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) SELECT {first(**{other: 99})}",
            # Every table has a rowid, and a new row may take the place of one that has another key by it.
            f"REPLACE INTO {table} (rowid, {', '.join(names)}) SELECT rowid, {first(**dict.fromkeys(key, 99))}",
            f"UPDATE OR REPLACE {table} SET {key[-1]} = 0",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                base.execute(statement)
            assert list(base.iterdump()) == before, statement


# -- as logs --------------------------------------------------------------------------------------------------------


def test_it_is_a_sequence_of_its_conversations(url: str, talk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_iterppo.data.store.stored.BATCH", 4)
    made = [talk(str(number), outcome=None if number % 3 else 1.0) for number in range(11)]
    made[4] = replace(made[4], turns=made[4].turns[:1])
    with ConversationStore(url) as store:
        store.add(made)
        found = StoredConversations(url)
        store.record_outcome("1", 1.0)
        store.add([talk("late")])
    assert len(found) == 11 and list(found) == made and [found[index] for index in range(11)] == made
    assert found[-1] == made[-1] and list(found[2:9:3]) == made[2:9:3]
    with pytest.raises(IndexError):
        found[11]
    part = select(found, np.array([4, 3]))
    assert isinstance(part, View)
    assert outcomes_known(part).tolist() == [False, True] and turn_counts(part).tolist() == [1, 2]
    assert outcomes_known(found).tolist() == [number % 3 == 0 for number in range(11)]
    assert turn_counts(found).tolist() == [len(each.turns) for each in made]
    assert tuple(map(list, split_conversations(found, 0.3, seed=5))) == split_conversations(made, 0.3, seed=5)
    assert list(pickle.loads(pickle.dumps(found[3:]))) == made[3:]
    assert len(StoredConversations(url, known_outcomes=True)) == 5
    with pytest.raises(LogDataError, match="no such conversation"):
        StoredConversations(url, policy_versions="nobody's")


def test_one_that_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "none.db", tmp_path / "nowhere" / "none.db"):
        with pytest.raises(StoreError, match=r"there is no store .*none\.db: `iterppo store add` makes one"):
            StoredConversations(str(place))
        assert not place.exists()
    with pytest.raises(StoreError, match="there is no directory"):
        ConversationStore(str(tmp_path / "nowhere" / "none.db"))
    with pytest.raises(ConfigError, match="is no store"):
        ConversationStore(":memory:")
