"""SQLite refuses to replace a row too: INSERT OR REPLACE removes the old one without the triggers of a delete."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_KEYS = {
    "conversations": "id = NEW.id",
    "turns": "conversation = NEW.conversation AND position = NEW.position",
    "suggestions": "conversation = NEW.conversation AND position = NEW.position",
    "outcomes": "conversation = NEW.conversation AND revision = NEW.revision",
    "iterations": "run = NEW.run AND iteration = NEW.iteration",
}


def upgrade() -> None:
    """Makes the triggers. On PostgreSQL ON CONFLICT DO UPDATE fires those of an update, which are there."""
    if op.get_bind().dialect.name != "sqlite":
        return
    for table, key in _KEYS.items():
        # The rowid too, which is `number` where there is one: every table has one, and a row is replaced by it as well.
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE rowid = NEW.rowid OR ({key})) "
            "BEGIN SELECT RAISE(ABORT, 'the store is append-only, and has this row'); END"
        )
