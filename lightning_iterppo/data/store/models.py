"""The tables, as SQLAlchemy models. `migrations` makes them in a database; a test compares the two.

A conversation's row never changes: its outcome, which may come days later, has a table of its own.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_CANNOT_BE_STORED = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


class AnyText(TypeDecorator[str]):
    """Any text of Python.

    A database holds neither the character U+0000 (PostgreSQL) nor half a surrogate pair (both), and a policy or a log
    may say either. They are written as U+001A and four hexadecimal digits, and so is U+001A itself.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """As it is stored."""
        return None if value is None else _CANNOT_BE_STORED.sub(lambda found: f"\x1a{ord(found[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """As it was."""
        return None if value is None else _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)


class JsonText(AnyText):
    """A JSON object as text: the same on both databases, and its numbers are those of Python."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """As it is stored."""
        return super().process_bind_param(json.dumps(value, ensure_ascii=False, allow_nan=False), dialect)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """As it was."""
        return json.loads(super().process_result_value(value, dialect) or "null")


class _Packed(TypeDecorator[tuple[Any, ...]]):
    """Numbers one behind the other, little-endian."""

    impl = LargeBinary
    cache_ok = True
    dtype: str

    def process_bind_param(self, value: tuple[Any, ...] | None, dialect: Dialect) -> bytes | None:
        """As it is stored."""
        return None if value is None else np.array(value, dtype=self.dtype).tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[Any, ...] | None:
        """As it was."""
        return None if value is None else tuple(np.frombuffer(value, dtype=self.dtype).tolist())


class Tokens(_Packed):
    """Token ids, four bytes each."""

    cache_ok = True
    dtype = "<i4"


class Floats(_Packed):
    """Floating-point numbers, eight bytes each, exact."""

    cache_ok = True
    dtype = "<f8"


class Moment(TypeDecorator[datetime]):
    """A moment, in UTC: SQLite keeps no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As it was."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(timezone.utc)


#: SQLite counts up by itself only in a column of the type INTEGER, which there has 64 bits.
_Number = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """What all tables belong to; the names of constraints are the same on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ConversationRow(Base):
    """A conversation without its turns and its outcome. ``number`` is the order in which they came."""

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("id"),
        Index(None, "policy_version", "number"),
        Index(None, "run", "iteration", "number"),
    )

    number: Mapped[int] = mapped_column(_Number, primary_key=True)
    id: Mapped[str] = mapped_column(AnyText)
    system: Mapped[str | None] = mapped_column(AnyText)
    closing: Mapped[str] = mapped_column(AnyText)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    policy_version: Mapped[str | None] = mapped_column(AnyText)
    # `metadata` is a name that SQLAlchemy keeps for itself.
    extra: Mapped[dict[str, Any]] = mapped_column("metadata", JsonText)
    # Which run collected it in which iteration; both null for logs.
    run: Mapped[str | None] = mapped_column(AnyText)
    iteration: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Moment)


class TurnRow(Base):
    """A turn: what was said, what became of the suggestion, and what the turn earned as far as it was known then."""

    __tablename__ = "turns"
    __table_args__ = (
        CheckConstraint("disposition in ('accepted', 'edited', 'rejected', 'unassisted')", name="disposition"),
    )

    conversation: Mapped[int] = mapped_column(_Number, ForeignKey("conversations.number"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    customer: Mapped[str] = mapped_column(AnyText)
    message: Mapped[str] = mapped_column(AnyText)
    disposition: Mapped[str] = mapped_column(Text)
    reward: Mapped[float] = mapped_column(Double)


class SuggestionRow(Base):
    """What a policy suggested at a turn, with its tokens, their log-probabilities, and the policy's version."""

    __tablename__ = "suggestions"
    __table_args__ = (
        ForeignKeyConstraint(["conversation", "position"], ["turns.conversation", "turns.position"]),
        Index(None, "policy_version"),
    )

    conversation: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(AnyText)
    token_ids: Mapped[tuple[int, ...]] = mapped_column(Tokens)
    logprobs: Mapped[tuple[float, ...]] = mapped_column(Floats)
    policy_version: Mapped[str | None] = mapped_column(AnyText)


class OutcomeRow(Base):
    """An outcome of a conversation: revision 0 is the first, and each correction is one more; the highest counts.

    ``rewards`` says what each turn earned under an outcome that came later than its conversation; it is null for the
    outcome that a conversation was added with, whose rewards are those of the turns.
    """

    __tablename__ = "outcomes"
    __table_args__ = (UniqueConstraint("conversation", "revision"),)

    number: Mapped[int] = mapped_column(_Number, primary_key=True)
    conversation: Mapped[int] = mapped_column(_Number, ForeignKey("conversations.number"))
    revision: Mapped[int] = mapped_column(Integer)
    value: Mapped[float] = mapped_column(Double)
    rewards: Mapped[tuple[float, ...] | None] = mapped_column(Floats)
    recorded_at: Mapped[datetime] = mapped_column(Moment)


class IterationRow(Base):
    """One iteration of a run: the version of the policy that talked in it, and its figures."""

    __tablename__ = "iterations"
    __table_args__ = (UniqueConstraint("run", "iteration"),)

    number: Mapped[int] = mapped_column(_Number, primary_key=True)
    run: Mapped[str] = mapped_column(AnyText)
    iteration: Mapped[int] = mapped_column(Integer)
    policy_version: Mapped[str | None] = mapped_column(AnyText)
    figures: Mapped[dict[str, Any]] = mapped_column(JsonText)
    created_at: Mapped[datetime] = mapped_column(Moment)
