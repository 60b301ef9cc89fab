"""The tables: conversations, turns, suggestions, outcomes, iterations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "conversations",
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("system", sa.Text()),
        sa.Column("closing", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger()),
        sa.Column("policy_version", sa.Text()),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("run", sa.Text()),
        sa.Column("iteration", sa.Integer()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_conversations"),
        sa.UniqueConstraint("id", name="uq_conversations_id"),
    )
    op.create_index("ix_conversations_policy_version_number", "conversations", ["policy_version", "number"])
    op.create_index("ix_conversations_run_iteration_number", "conversations", ["run", "iteration", "number"])
    op.create_table(
        "turns",
        sa.Column("conversation", _NUMBER, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("disposition", sa.Text(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("conversation", "position", name="pk_turns"),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.number"], name="fk_turns_conversations"),
        sa.CheckConstraint(
            "disposition in ('accepted', 'edited', 'rejected', 'unassisted')", name=op.f("ck_turns_disposition")
        ),
    )
    op.create_table(
        "suggestions",
        sa.Column("conversation", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("policy_version", sa.Text()),
        sa.PrimaryKeyConstraint("conversation", "position", name="pk_suggestions"),
        sa.ForeignKeyConstraint(
            ["conversation", "position"], ["turns.conversation", "turns.position"], name="fk_suggestions_turns"
        ),
    )
    op.create_index("ix_suggestions_policy_version", "suggestions", ["policy_version"])
    op.create_table(
        "outcomes",
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("conversation", _NUMBER, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("rewards", sa.LargeBinary()),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_outcomes"),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.number"], name="fk_outcomes_conversations"),
        sa.UniqueConstraint("conversation", "revision", name="uq_outcomes_conversation_revision"),
    )
    op.create_table(
        "iterations",
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("policy_version", sa.Text()),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_iterations"),
        sa.UniqueConstraint("run", "iteration", name="uq_iterations_run_iteration"),
    )
