"""`ConversationStore`: adds conversations, outcomes and iterations to a database, and reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.store import rows
from lightning_iterppo.data.store.database import Database
from lightning_iterppo.data.store.models import ConversationRow as Row
from lightning_iterppo.data.store.models import IterationRow, OutcomeRow, now
from lightning_iterppo.data.store.rows import RecordedOutcome, Stored
from lightning_iterppo.data.store.schema import prepare
from lightning_iterppo.data.store.selection import Ends, Selection
from lightning_iterppo.errors import StoreError

#: Conversations that are in memory at a time.
BATCH: Final = 500
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Added:
    """What became of conversations: how many are new, and how many were there already, the same."""

    added: int = 0
    known: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of outcomes: new, there already and the same, and of conversations that are not in the store."""

    recorded: int = 0
    repeated: int = 0
    unmatched: int = 0


@dataclass(frozen=True, slots=True)
class StoredIteration:
    """An iteration of a run: the policy that talked in it, and its figures."""

    run: str
    iteration: int
    policy_version: str | None
    figures: dict[str, Any]


class ConversationStore:
    """Conversations, their suggestions and outcomes, and the iterations of runs, in a database.

    It only grows: nothing in it is changed or removed, and the database itself refuses to. What it gives back is equal
    to what it was given. Several processes may write at once; each call that writes waits for those before it, and is
    kept whole or, when it raises, not at all.

    It can be pickled, and used in a process that was forked. Close it, or use it in a ``with``.

    Args:
        url: ``postgresql://USER@HOST/NAME``, ``sqlite:///FILE``, or a path, which is a SQLite file.
        create: whether to make a store where there is none.

    Raises:
        ConfigError: the URL is none, or the store is of another form than this version of the library reads.
        StoreError: there is no store, or the database cannot be reached.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.database = Database(url)
        prepare(self.database, create=create)

    def __str__(self) -> str:
        """Where it is, without a password."""
        return str(self.database)

    def __enter__(self) -> ConversationStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self.database.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def add(
        self, conversations: Iterable[Conversation], *, run: str | None = None, iteration: int | None = None
    ) -> Added:
        """Adds conversations, all of them or none.

        One whose id is there already is skipped if it is the same, as it was added or with the outcome that counts now:
        whoever does not know how far he came says it all again.

        Args:
            conversations: any number; `BATCH` at a time are in memory. Others who write wait until all are read.
            run: the run that collected them; None for logs.
            iteration: in which of its iterations.

        Raises:
            StoreError: another conversation has the id of one of them, or one cannot be stored as it is; the text names
                it, and nothing was added.
        """
        if run is not None:
            rows.check_name(run, "the run's name")
        at, added, total = now(), 0, 0
        with self.database.writing() as connection:
            for batch in _batches(conversations):
                named: dict[str, list[Conversation]] = {}
                for each in batch:
                    rows.check(each)
                    named.setdefault(each.id, []).append(each)
                for stored in self._named(connection, list(named)):
                    for given in named.pop(stored.bare.id):
                        if given not in (stored.added, stored.newest):
                            raise _another(given, stored.newest)
                for first, *others in named.values():
                    for given in others:
                        if given != first:
                            raise _another(given, first)
                rows.insert(connection, [same[0] for same in named.values()], run, iteration, at)
                added, total = added + len(named), total + len(batch)
        return Added(added, total - added)

    def record_outcome(
        self, id: str, value: float, rewards: Sequence[float] | None = None, *, correct: bool = False
    ) -> bool:
        """Records the outcome of a conversation, which may come long after it; gives whether it is new.

        A second outcome that differs from the first is refused: of two sources that contradict each other the store
        cannot know which is right, and with two writers the last one would win by chance. If the first was wrong
        (the goods came back), say ``correct``: both stay, and the new one counts. Corrections are numbered in the
        database, so that two at once are one after the other.

        Args:
            id: the conversation's.
            value: the undiscounted total reward.
            rewards: what each turn earned. Without them what the turns said when the conversation was added counts, if
                it adds up to the outcome; if it is all 0 the last turn earned the outcome.
            correct: whether it may take the place of another outcome.

        Raises:
            StoreError: there is no such conversation, it has another outcome, or its rewards say something else.
        """
        with self.database.writing() as connection:
            found = self._record(connection, {id: (value, rewards)}, correct)
        if found.unmatched:
            raise StoreError(f"{self} has no conversation {id!r}")
        return bool(found.recorded)

    def record_outcomes(self, outcomes: Iterable[tuple[str, float]], *, correct: bool = False) -> Recorded:
        """Records the outcomes of many conversations, all or none; those of unknown conversations are only counted.

        Args:
            outcomes: ids and outcomes; see `record_outcome`.
            correct: whether they may take the place of others.

        Raises:
            StoreError: a conversation has another outcome, or its rewards say something else.
        """
        total = Recorded()
        with self.database.writing() as connection:
            for batch in _batches(outcomes):
                # A conversation that is named twice has to have its first outcome before its second is looked at.
                while batch:
                    part: dict[str, tuple[float, Sequence[float] | None]] = {}
                    rest = []
                    for id, value in batch:
                        if id in part:
                            rest.append((id, value))
                        else:
                            part[id] = (value, None)
                    found = self._record(connection, part, correct)
                    total = Recorded(
                        total.recorded + found.recorded,
                        total.repeated + found.repeated,
                        total.unmatched + found.unmatched,
                    )
                    batch = rest
        return total

    def add_iteration(
        self, run: str, iteration: int, figures: dict[str, Any], *, policy_version: str | None = None
    ) -> bool:
        """Adds an iteration of a run; gives whether it is new.

        Args:
            run: the run's name, which is its own in the whole store.
            iteration: its number, from 0.
            figures: JSON types only.
            policy_version: the policy that talked in it.

        Raises:
            StoreError: the store has other figures of the iteration.
        """
        rows.check_name(run, "the run's name")
        given = StoredIteration(run, iteration, policy_version, json.loads(json.dumps(figures, allow_nan=False)))
        with self.database.writing() as connection:
            for found in self._iterations(connection, run, iteration):
                if found != given:
                    raise StoreError(f"{self} has other figures of iteration {iteration} of the run {run!r}")
                return False
            content = {"run": run, "iteration": iteration, "policy_version": policy_version, "figures": given.figures}
            connection.execute(sa.insert(IterationRow), [{**content, "created_at": now()}])
        return True

    # -- reading -------------------------------------------------------------------------------------------------

    def conversations(
        self,
        *,
        policy_versions: str | Sequence[str] | None = None,
        run: str | None = None,
        iteration: int | None = None,
        known_outcomes: bool = False,
    ) -> Iterator[Conversation]:
        """The conversations that were there when the first one is asked for, in the order in which they came.

        `BATCH` of them are in memory, and nobody has to wait for whoever reads slowly. Each has its newest outcome, and
        None where it has none: such a conversation is censored, and no failure.

        Args:
            policy_versions: only those in which one of these policies talked.
            run: only those that this run collected.
            iteration: only those of this iteration.
            known_outcomes: only those whose outcome is known.
        """
        which = Selection(policy_versions, run, iteration, known_outcomes)
        with self.database.reading() as connection:
            ends = Ends.now(connection)
        after = 0
        while True:
            part = sa.select(Row.number).where(Row.number > after, *which.conditions(ends))
            with self.database.reading() as connection:
                numbers = list(connection.scalars(part.order_by(Row.number).limit(BATCH)))
                found = [stored.newest for stored in rows.load(connection, numbers, ends.outcome)]
            if not numbers:
                return
            yield from found
            after = numbers[-1]

    def outcomes(self, id: str) -> tuple[RecordedOutcome, ...]:
        """All outcomes of a conversation, the one that counts last; none where it is not known yet.

        Raises:
            StoreError: there is no such conversation.
        """
        with self.database.reading() as connection:
            for stored in self._named(connection, [id]):
                return stored.outcomes
        raise StoreError(f"{self} has no conversation {id!r}")

    def iterations(self, run: str | None = None) -> list[StoredIteration]:
        """The iterations of a run, or of all."""
        with self.database.reading() as connection:
            return self._iterations(connection, run)

    # -- inside --------------------------------------------------------------------------------------------------

    def _named(self, connection: Connection, names: Sequence[str]) -> Iterator[Stored]:
        return rows.load(connection, list(rows.numbers_of(connection, names).values()))

    def _record(
        self, connection: Connection, given: dict[str, tuple[float, Sequence[float] | None]], correct: bool
    ) -> Recorded:
        made, repeated, unmatched, at = [], 0, len(given), now()
        for stored in self._named(connection, list(given)):
            unmatched -= 1
            value, rewards = given[stored.bare.id]
            last = stored.outcomes[-1] if stored.outcomes else None
            earned = [turn.reward for turn in stored.newest.turns]
            if last is not None and last.value == value and (rewards is None or list(rewards) == earned):
                repeated += 1
                continue
            if last is not None and not correct:
                raise StoreError(
                    f"conversation {stored.bare.id!r} has the outcome {last.value:g} already, and {value:g} is "
                    "another: if the first was wrong, say that this corrects it (correct=True, or --correct)"
                )
            settled = rows.settled(stored.bare, value, rewards, correct=last is not None)
            content = {"revision": len(stored.outcomes), "value": value, "rewards": settled, "recorded_at": at}
            made.append({"conversation": stored.number, **content})
        if made:
            connection.execute(sa.insert(OutcomeRow), made)
        return Recorded(len(made), repeated, unmatched)

    def _iterations(
        self, connection: Connection, run: str | None, iteration: int | None = None
    ) -> list[StoredIteration]:
        part = sa.select(IterationRow.__table__).order_by(IterationRow.number)
        if run is not None:
            part = part.where(IterationRow.run == run)
        if iteration is not None:
            part = part.where(IterationRow.iteration == iteration)
        found = connection.execute(part)
        return [StoredIteration(row.run, row.iteration, row.policy_version, row.figures) for row in found]


def _another(given: Conversation, stored: Conversation) -> StoreError:
    """The refusal of a conversation whose id another one has."""
    name = f"conversation {given.id!r}"
    if _unsettled(given) == _unsettled(stored):
        ends = [
            "no known outcome" if each.outcome is None else f"the outcome {each.outcome:g}" for each in (stored, given)
        ]
        return StoreError(
            f"{name} is in the store with {ends[0]}, and comes again with {ends[1]} and its rewards: "
            "outcomes that come later are recorded (`iterppo store outcomes`)"
        )
    return StoreError(f"{name} is in the store already, and another one comes with its id: give it an id of its own")


def _unsettled(conversation: Conversation) -> Conversation:
    turns = tuple(replace(turn, reward=0.0) for turn in conversation.turns)
    return replace(conversation, outcome=None, turns=turns)


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch
