"""Which conversations of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lightning_iterppo.data.store.models import ConversationRow, OutcomeRow


@dataclass(frozen=True, slots=True)
class Selection:
    """All conversations of which everything that is given is true.

    Args:
        policy_versions: the policy that talked is one of these; None for any, and for none.
        run: the run that collected it.
        iteration: the iteration in which it was collected.
        known_outcomes: its outcome is known.
    """

    policy_versions: str | Sequence[str] | None = None
    run: str | None = None
    iteration: int | None = None
    known_outcomes: bool = False

    def conditions(self, ends: Ends) -> list[sa.ColumnElement[bool]]:
        """For a WHERE, of what was in the store at a moment."""
        found: list[sa.ColumnElement[bool]] = [ConversationRow.number <= ends.conversation]
        if self.policy_versions is not None:
            versions = [self.policy_versions] if isinstance(self.policy_versions, str) else list(self.policy_versions)
            found.append(ConversationRow.policy_version.in_(versions))
        if self.run is not None:
            found.append(ConversationRow.run == self.run)
        if self.iteration is not None:
            found.append(ConversationRow.iteration == self.iteration)
        if self.known_outcomes:
            found.append(known(ends))
        return found


@dataclass(frozen=True, slots=True)
class Ends:
    """A moment of a store, as the last rows that there were. Rows come in the order of their numbers."""

    conversation: int
    outcome: int

    @classmethod
    def now(cls, connection: Connection) -> Ends:
        """This moment."""
        last = sa.select(sa.func.max(ConversationRow.number)), sa.select(sa.func.max(OutcomeRow.number))
        conversation, outcome = (connection.execute(each).scalar() or 0 for each in last)
        return cls(conversation, outcome)


def known(ends: Ends) -> sa.ColumnElement[bool]:
    """Whether the outcome of a row of `ConversationRow` was known."""
    same = OutcomeRow.conversation == ConversationRow.number
    return sa.exists().where(same, OutcomeRow.number <= ends.outcome).correlate(ConversationRow)
