"""Conversations as rows and back: what a database gives back is equal to what it was given, or it was refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, NoReturn, cast, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lightning_iterppo.conversation import Conversation, Disposition, Suggestion, Turn
from lightning_iterppo.data.importing.records import BadRecord, settle_outcome
from lightning_iterppo.data.store.models import ConversationRow, OutcomeRow, SuggestionRow, TurnRow
from lightning_iterppo.errors import StoreError

#: Names are indexed, and an index of PostgreSQL takes no longer ones.
_LONGEST_NAME = 500


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """An outcome as it was recorded.

    Args:
        value: the undiscounted total reward.
        rewards: what each turn earned; None where that is what the turns of the conversation say.
        recorded_at: when, in UTC.
        revision: 0 for the first, and one more for every correction.
    """

    value: float
    rewards: tuple[float, ...] | None
    recorded_at: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A conversation of the store.

    Args:
        number: its row.
        bare: the conversation without its outcome.
        outcomes: all of them, the newest last.
    """

    number: int
    bare: Conversation
    outcomes: tuple[RecordedOutcome, ...]

    @property
    def added(self) -> Conversation:
        """As it was added: with the outcome that it came with, if it had one."""
        own = self.outcomes[0] if self.outcomes else None
        return self.bare if own is None or own.rewards is not None else replace(self.bare, outcome=own.value)

    @property
    def newest(self) -> Conversation:
        """With the outcome that counts, and what each turn earned under it."""
        if not self.outcomes:
            return self.bare
        last, turns = self.outcomes[-1], self.bare.turns
        if last.rewards is not None:
            turns = tuple(replace(turn, reward=each) for turn, each in zip(turns, last.rewards, strict=True))
        return replace(self.bare, outcome=last.value, turns=turns)


# -- into the database ----------------------------------------------------------------------------------------------


def check(conversation: Conversation) -> None:
    """Tests that a database gives a conversation back as it is.

    Raises:
        StoreError: it does not, or the conversation has no id; the text names the conversation.
    """
    refuse = _Refusal(conversation.id)
    if not conversation.id:
        raise StoreError("a conversation has no id, and outcomes are joined by it: `iterppo import` gives it one")
    check_name(conversation.id, "the id")
    if conversation.policy_version is not None:
        check_name(conversation.policy_version, "the policy version")
    if not conversation.turns:
        refuse("it has no turn")
    seed = conversation.seed
    if seed is not None and not (isinstance(seed, int) and -(2**63) <= seed < 2**63):
        refuse(f"its seed must be a whole number of 64 bits, found {seed!r}")
    try:
        same = json.loads(json.dumps(conversation.metadata, allow_nan=False)) == conversation.metadata
    except (TypeError, ValueError):
        same = False
    if not same:
        refuse("its metadata is not what JSON can hold")
    if conversation.outcome is not None and not math.isfinite(conversation.outcome):
        refuse(f"its outcome must be finite, found {conversation.outcome}")
    for index, turn in enumerate(conversation.turns):
        if turn.disposition not in get_args(Disposition):
            refuse(f"turn {index}: there is no disposition {turn.disposition!r}")
        if not math.isfinite(turn.reward):
            refuse(f"turn {index}: its reward must be finite, found {turn.reward}")
        made = turn.suggestion
        if made is None:
            continue
        if made.policy_version is not None:
            check_name(made.policy_version, "a suggestion's policy version")
        if not all(isinstance(each, int) and -(2**31) <= each < 2**31 for each in made.token_ids):
            refuse(f"turn {index}: its token ids must be whole numbers of 32 bits")
        if not all(map(math.isfinite, made.logprobs)):
            refuse(f"turn {index}: its log-probabilities must be finite")


def check_name(name: str, what: str) -> None:
    """Tests that a name can be indexed.

    Raises:
        StoreError: it is too long.
    """
    if len(name) > _LONGEST_NAME:
        raise StoreError(f"{what} {name[:40]!r}… has {len(name)} characters, and at most {_LONGEST_NAME} can be stored")


class _Refusal:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, reason: str) -> NoReturn:
        raise StoreError(f"conversation {self.name!r} cannot be stored: {reason}")


def insert(
    connection: Connection, conversations: Sequence[Conversation], run: str | None, iteration: int | None, at: datetime
) -> None:
    """Writes conversations that are not there yet, of different ids, each with the outcome that it came with."""
    if not conversations:
        return
    heads = [
        {
            "id": each.id,
            "system": each.system,
            "closing": each.closing,
            "seed": None if each.seed is None else int(each.seed),
            "policy_version": each.policy_version,
            "metadata": each.metadata,
            "run": run,
            "iteration": iteration,
            "created_at": at,
        }
        for each in conversations
    ]
    connection.execute(sa.insert(ConversationRow), heads)
    numbers = numbers_of(connection, [each.id for each in conversations])
    turns, suggestions, outcomes = [], [], []
    for each in conversations:
        number = numbers[each.id]
        if each.outcome is not None:
            value = {"revision": 0, "value": each.outcome, "rewards": None, "recorded_at": at}
            outcomes.append({"conversation": number, **value})
        for position, turn in enumerate(each.turns):
            place = {"conversation": number, "position": position}
            said = {"customer": turn.customer, "message": turn.message}
            turns.append({**place, **said, "disposition": turn.disposition, "reward": turn.reward})
            made = turn.suggestion
            if made is not None:
                tokens = {"token_ids": made.token_ids, "logprobs": made.logprobs}
                suggestions.append({**place, "text": made.text, **tokens, "policy_version": made.policy_version})
    for table, rows in ((TurnRow, turns), (SuggestionRow, suggestions), (OutcomeRow, outcomes)):
        if rows:
            connection.execute(sa.insert(table), rows)


def numbers_of(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """The rows of those conversations that are there, by their ids."""
    found = connection.execute(
        sa.select(ConversationRow.id, ConversationRow.number).where(ConversationRow.id.in_(names))
    )
    return {row.id: row.number for row in found}


def settled(
    conversation: Conversation, value: float, rewards: Sequence[float] | None, *, correct: bool
) -> tuple[float, ...]:
    """What each turn earned under an outcome that comes after its conversation.

    Rewards that are not given are those of the turns where they add up to the outcome. Where no turn has one the last
    turn earned it all, and in a correction the one turn that earned all earned the new value.

    Args:
        conversation: as it was added.
        value: the outcome.
        rewards: one a turn, where they are known.
        correct: whether another outcome was recorded before.

    Raises:
        StoreError: the rewards are not one a turn, or say something else than the outcome.
    """
    refuse = f"the outcome {value:g} of conversation {conversation.id!r} cannot be recorded"
    own = [turn.reward for turn in conversation.turns]
    if not all(map(math.isfinite, [value, *(rewards or ())])):
        raise StoreError(f"{refuse}: it and its rewards must be finite")
    if rewards is not None and len(rewards) != len(own):
        raise StoreError(f"{refuse}: there are {len(rewards)} rewards for {len(own)} turns")
    earners = [index for index, reward in enumerate(own) if reward]
    if rewards is None and correct and len(earners) == 1:
        return tuple(value if index == earners[0] else 0.0 for index in range(len(own)))
    try:
        if rewards is not None and value and not any(rewards):
            raise BadRecord("rewards that are not the outcome", "they are all 0")
        return tuple(settle_outcome(own if rewards is None else [float(each) for each in rewards], value))
    except BadRecord as bad:
        raise StoreError(f"{refuse}: {bad}; give what each turn earned under it") from bad


# -- out of it ------------------------------------------------------------------------------------------------------

_HEAD = (
    *(ConversationRow.number, ConversationRow.id, ConversationRow.system, ConversationRow.closing),
    *(ConversationRow.seed, ConversationRow.policy_version, ConversationRow.extra.label("extra")),
)
_TURN = (
    *(TurnRow.conversation, TurnRow.position, TurnRow.customer, TurnRow.message, TurnRow.disposition, TurnRow.reward),
    *(SuggestionRow.text, SuggestionRow.token_ids, SuggestionRow.logprobs, SuggestionRow.policy_version),
)


def load(connection: Connection, numbers: Sequence[int], mark: int | None = None) -> Iterator[Stored]:
    """Conversations by their rows, in the order of the rows.

    Args:
        connection: to the store.
        numbers: which.
        mark: the last outcome that counts, by its row; None for the last there is.
    """
    heads = connection.execute(
        sa.select(*_HEAD).where(ConversationRow.number.in_(numbers)).order_by(ConversationRow.number)
    ).all()
    same_place = sa.and_(SuggestionRow.conversation == TurnRow.conversation, SuggestionRow.position == TurnRow.position)
    turns = connection.execute(
        sa.select(*_TURN)
        .outerjoin_from(TurnRow, SuggestionRow, same_place)
        .where(TurnRow.conversation.in_(numbers))
        .order_by(TurnRow.conversation, TurnRow.position)
    )
    outcomes = sa.select(OutcomeRow.__table__).where(OutcomeRow.conversation.in_(numbers))
    if mark is not None:
        outcomes = outcomes.where(OutcomeRow.number <= mark)
    ended: dict[int, list[RecordedOutcome]] = {}
    for row in connection.execute(outcomes.order_by(OutcomeRow.conversation, OutcomeRow.revision)):
        found = RecordedOutcome(row.value, row.rewards, row.recorded_at, row.revision)
        ended.setdefault(row.conversation, []).append(found)
    talks = {number: tuple(map(_turn, rows)) for number, rows in groupby(turns, key=attrgetter("conversation"))}
    for head in heads:
        bare = Conversation(
            id=head.id,
            turns=talks[head.number],
            system=head.system,
            closing=head.closing,
            seed=head.seed,
            policy_version=head.policy_version,
            metadata=head.extra,
        )
        yield Stored(head.number, bare, tuple(ended.get(head.number, ())))


def _turn(row: Any) -> Turn:
    suggestion = None
    if row.text is not None:
        suggestion = Suggestion(row.text, row.token_ids, row.logprobs, row.policy_version)
    return Turn(row.customer, row.message, suggestion, cast(Disposition, row.disposition), row.reward)
