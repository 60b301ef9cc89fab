"""The database itself refuses to change or to remove what was stored."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = ("conversations", "turns", "suggestions", "outcomes", "iterations")
_SAID = "the store is append-only"


def upgrade() -> None:
    """Makes the triggers."""
    if op.get_bind().dialect.name == "sqlite":
        for table in _TABLES:
            for what in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{what} BEFORE {what} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{_SAID}'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION iterppo_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_SAID}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION iterppo_append_only()"
        )
