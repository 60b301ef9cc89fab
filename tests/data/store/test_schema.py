"""Of which form a store is: made by the migrations, brought to today's form when told to, refused when it is newer."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.store import ConversationStore, schema
from lightning_iterppo.data.store.database import Database
from lightning_iterppo.data.store.models import Base
from lightning_iterppo.errors import ConfigError, StoreError


def make_old(url: str, form: str) -> Database:
    """A store of an older form."""
    database = Database(url)
    config = schema._config()
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, form)
    return database


def test_the_migrations_make_what_the_models_say(url: str) -> None:
    with ConversationStore(url) as store, store.database.reading() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
        # Alembic does not compare these.
        made = sa.inspect(connection)
        for name, table in Base.metadata.tables.items():
            checks = {each.name for each in table.constraints if isinstance(each, sa.CheckConstraint)}
            assert {each["name"] for each in made.get_check_constraints(name)} == checks


@pytest.mark.parametrize("form", ["0001", "0002"])
def test_an_older_store_is_upgraded_when_that_is_said(url: str, talk: Callable[..., Conversation], form: str) -> None:
    database = make_old(url, form)
    with pytest.raises(ConfigError) as caught:
        ConversationStore(url)
    assert f"older form {form}" in str(caught.value) and "run `iterppo store upgrade " in str(caught.value)
    made = schema.upgrade_store(url)
    assert (made.form_before, made.form) == (form, schema.newest_version())
    with ConversationStore(url) as store:
        store.add([talk()])
        again = schema.upgrade_store(url)
        assert again.form_before == again.form == schema.newest_version()
        assert list(store.conversations()) == [talk()]
        statements = ["DELETE FROM turns"]
        if database.file is not None:
            statements.append("INSERT OR REPLACE INTO turns SELECT * FROM turns")
        for statement in statements:
            with pytest.raises(sa.exc.IntegrityError, match="append-only"), database.writing() as connection:
                connection.exec_driver_sql(statement)
    database.close()


def test_a_newer_store_is_refused(url: str) -> None:
    with ConversationStore(url) as store, store.database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0999'")
    for use in (ConversationStore, schema.upgrade_store):
        with pytest.raises(ConfigError, match=r"of the form 0999, which this version .* is too old for"):
            use(url)


def test_what_is_no_store_is_not_changed(tmp_path: Path) -> None:
    base, text = tmp_path / "theirs.db", tmp_path / "text.db"
    with sqlite3.connect(base) as connection:
        connection.execute("CREATE TABLE turns (x)")
    text.write_text("no database at all, and long enough to be seen as none" * 10)
    with pytest.raises(ConfigError, match=r"theirs\.db has a table turns of somebody else's"):
        ConversationStore(str(base))
    with pytest.raises(StoreError, match=r"there is no store .*theirs\.db"):
        ConversationStore(str(base), create=False)
    with pytest.raises(StoreError, match=r"text\.db: the file is there and is no SQLite database"):
        ConversationStore(str(text))
    with pytest.raises(StoreError, match="cannot be opened"):
        ConversationStore(str(tmp_path))
    assert text.read_text().startswith("no database")
    for missing in (base, tmp_path / "none.db"):
        with pytest.raises(StoreError, match="there is no store"):
            schema.upgrade_store(str(missing))


def test_other_tables_may_lie_beside_it(url: str, talk: Callable[..., Conversation]) -> None:
    database = Database(url)
    with database.writing() as connection:
        for name in ("alembic_version", "customers"):
            connection.exec_driver_sql(f"CREATE TABLE {name} (x integer)")
    database.close()
    with ConversationStore(url) as store:
        assert store.add([talk()]).added == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "'' is no store"),
        ("sqlite://", "is no store"),
        ("sqlite:///x.db?mode=ro", "is no store"),
        ("mysql://me:secret@host/x", "mysql is neither"),
        ("postgresql://me:secret@host:port/x", "is no URL of a database"),
        ("://me:secret@x", "is no URL of a database"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(url)
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_urls_of_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("x.db", f"{tmp_path}/x.db", "sqlite:///x.db", f"sqlite:///{tmp_path}/x.db", "sqlite+pysqlite:///x.db"):
        with ConversationStore(url) as store:
            store.add([talk()])
            assert len(list(store.conversations())) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["x.db"]
    for url in (
        "postgresql://me:secret@host/x",
        "postgres://me:secret@host/x",
        "postgresql+psycopg://me:secret@host/x",
    ):
        assert str(Database(url)) == "postgresql://me:***@host/x"
