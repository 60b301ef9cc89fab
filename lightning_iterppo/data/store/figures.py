"""What is in a store, in figures, by the policy that made it. Counted by the database: no conversation is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from rapidfuzz.distance import Levenshtein
from sqlalchemy.engine import Connection
from sqlalchemy.orm import aliased

from lightning_iterppo.data.store.conversation_store import BATCH, ConversationStore
from lightning_iterppo.data.store.models import ConversationRow, IterationRow, OutcomeRow, SuggestionRow, TurnRow
from lightning_iterppo.data.store.schema import newest_version
from lightning_iterppo.evaluation.dispositions import DispositionCounts
from lightning_iterppo.evaluation.rates import counted_rate
from lightning_iterppo.summary import Rate


@dataclass
class VersionFigures:
    """What came of one policy.

    Args:
        policy_version: which; None for what people did, or nobody knows who.
        conversations: those in which it talked.
        outcome: how those ended whose outcome is known; None where none is.
        dispositions: what became of its suggestions, and turns without one.
    """

    policy_version: str | None
    conversations: int = 0
    outcome: Rate | None = None
    dispositions: DispositionCounts = field(default_factory=DispositionCounts)

    def to_json(self) -> dict[str, Any]:
        """The figures; one that is not known is None."""
        outcome = None if self.outcome is None else asdict(self.outcome)
        whole = {"policy_version": self.policy_version, "conversations": self.conversations, "outcome": outcome}
        return {**whole, **self.dispositions.to_json()}


@dataclass(frozen=True)
class StoreFigures:
    """A whole store.

    Args:
        store: where it is, without a password.
        form: of which form its tables are.
        conversations: how many there are.
        outcomes_known: those whose outcome is known.
        outcomes_recorded: outcomes, the corrected ones too.
        iterations: of all runs.
        versions: by policy, in the order in which their conversations came.
    """

    store: str
    form: str
    conversations: int
    outcomes_known: int
    outcomes_recorded: int
    iterations: int
    versions: list[VersionFigures]

    def to_json(self) -> dict[str, Any]:
        """The figures as `iterppo store show` prints them."""
        own = {key: value for key, value in vars(self).items() if key != "versions"}
        return {**own, "policy_versions": [each.to_json() for each in self.versions]}


def store_figures(store: ConversationStore) -> StoreFigures:
    """The figures of a store as it is now."""
    found: dict[str | None, VersionFigures] = {}

    def of(version: str | None) -> VersionFigures:
        return found.setdefault(version, VersionFigures(version))

    version = ConversationRow.policy_version
    with store.database.reading() as connection:
        talks = sa.select(version, sa.func.count()).group_by(version).order_by(sa.func.min(ConversationRow.number))
        for name, count in connection.execute(talks):
            of(name).conversations = count
        for name, won, known, total in connection.execute(_outcomes()):
            of(name).outcome = counted_rate(won, known, total)
        # A conversation may go on under another policy than it began with, so a suggestion says its own.
        made_by = sa.func.coalesce(SuggestionRow.policy_version, version).label("made_by")
        for name, disposition, count in connection.execute(
            _turns(made_by, TurnRow.disposition, sa.func.count()).group_by(made_by, TurnRow.disposition)
        ):
            of(name).dispositions.counts[disposition] = count
        edits = _turns(made_by, SuggestionRow.text, TurnRow.message).where(TurnRow.disposition == "edited")
        for name, made, sent in connection.execution_options(yield_per=BATCH).execute(edits):
            if made is not None:
                of(name).dispositions.edit_total += Levenshtein.normalized_distance(made, sent)
        return StoreFigures(
            store=str(store),
            form=newest_version(),
            conversations=_count(connection, ConversationRow),
            outcomes_known=sum(each.outcome.conversations for each in found.values() if each.outcome is not None),
            outcomes_recorded=_count(connection, OutcomeRow),
            iterations=_count(connection, IterationRow),
            versions=list(found.values()),
        )


def _outcomes() -> Any:
    """By policy: outcomes above 0, all known ones, and their sum; of each conversation the newest."""
    later = aliased(OutcomeRow)
    newest = ~sa.exists().where(later.conversation == OutcomeRow.conversation, later.revision > OutcomeRow.revision)
    won = sa.func.sum(sa.case((OutcomeRow.value > 0, 1), else_=0))
    version = ConversationRow.policy_version
    return (
        sa.select(version, won, sa.func.count(), sa.func.sum(OutcomeRow.value))
        .join_from(OutcomeRow, ConversationRow, OutcomeRow.conversation == ConversationRow.number)
        .where(newest)
        .group_by(version)
    )


def _turns(*what: Any) -> Any:
    """Something of every turn, its conversation, and its suggestion where it has one."""
    same = sa.and_(SuggestionRow.conversation == TurnRow.conversation, SuggestionRow.position == TurnRow.position)
    return (
        sa.select(*what)
        .join_from(TurnRow, ConversationRow, TurnRow.conversation == ConversationRow.number)
        .outerjoin(SuggestionRow, same)
    )


def _count(connection: Connection, table: type[Any]) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
