"""The conversations of a store as a sequence that stays in the database: logs for everything that learns from logs."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.store import rows
from lightning_iterppo.data.store.conversation_store import BATCH, ConversationStore
from lightning_iterppo.data.store.models import ConversationRow, TurnRow
from lightning_iterppo.data.store.selection import Ends, Selection, known
from lightning_iterppo.data.views import Lazy
from lightning_iterppo.errors import LogDataError


class StoredConversations(Lazy[Conversation]):
    """Conversations of a store as they were at one moment, each read when it is asked for and kept by nobody.

    Making it asks the database once, and keeps some thirteen bytes a conversation: its row, how many turns it has, and
    whether its outcome is known. What is added or recorded later does not change it. A slice is a `View`. It can be
    pickled.

    Args:
        url: the store's; see `ConversationStore`.
        policy_versions: only conversations in which one of these policies talked.
        run: only those that this run collected.
        iteration: only those of this iteration.
        known_outcomes: only those whose outcome is known.

    Raises:
        ConfigError: the URL is none, or the store is of another form than this version of the library reads.
        StoreError: there is no store, or the database cannot be reached.
        LogDataError: it has no such conversation.
    """

    def __init__(
        self,
        url: str,
        policy_versions: str | Sequence[str] | None = None,
        run: str | None = None,
        iteration: int | None = None,
        known_outcomes: bool = False,
    ) -> None:
        self.store = ConversationStore(url, create=False)
        which = Selection(policy_versions, run, iteration, known_outcomes)
        numbers, turns, outcomes = array("q"), array("i"), array("b")
        with self.store.database.reading() as connection:
            self._ends = Ends.now(connection)
            own = TurnRow.conversation == ConversationRow.number
            count = sa.select(sa.func.count()).where(own).correlate(ConversationRow).scalar_subquery()
            found = sa.select(ConversationRow.number, count, sa.case((known(self._ends), 1), else_=0))
            found = found.where(*which.conditions(self._ends)).order_by(ConversationRow.number)
            for number, talked, ended in connection.execution_options(yield_per=10 * BATCH).execute(found):
                numbers.append(number)
                turns.append(talked)
                outcomes.append(ended)
        if not numbers:
            raise LogDataError(f"{self.store} has no such conversation; `iterppo store show` says what there is")
        self._numbers = np.array(numbers, dtype=np.int64)
        #: Turns of each conversation.
        self.turns: NDArray[np.int32] = np.array(turns, dtype=np.int32)
        #: Whether the outcome of each is known.
        self.known: NDArray[np.bool_] = np.array(outcomes, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Conversation]:
        for start in range(0, len(self), BATCH):
            yield from self._read(self._numbers[start : start + BATCH])

    def _item(self, index: int) -> Conversation:
        return self._read(self._numbers[index : index + 1])[0]

    def _read(self, numbers: NDArray[np.int64]) -> list[Conversation]:
        with self.store.database.reading() as connection:
            return [stored.newest for stored in rows.load(connection, numbers.tolist(), self._ends.outcome)]
