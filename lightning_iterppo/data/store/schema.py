"""Whether a database is a store, and of which form; makes one of it, and brings an older one to today's form."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from lightning_iterppo.data.store.database import Database
from lightning_iterppo.data.store.models import Base
from lightning_iterppo.errors import ConfigError, StoreError

#: Where the form is written down. Not Alembic's default: an application beside the store may use that.
VERSION_TABLE: Final = "iterppo_store"


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A store, without a password, the form that it had, and the form that it has."""

    store: str
    form_before: str
    form: str


def version_of(connection: Connection) -> str | None:
    """The form that a database has, None if it is no store."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def newest_version() -> str:
    """The form that this version of the library reads and writes."""
    head = _script().get_current_head()
    assert head is not None, "there is a first step"
    return head


def prepare(database: Database, *, create: bool) -> None:
    """Sees to it that a database is a store of today's form.

    Args:
        database: which.
        create: whether to make one of a database that is none.

    Raises:
        StoreError: there is none, or the database cannot be reached.
        ConfigError: it is of an older form, or of a newer one, or has tables of somebody else's with our names.
    """
    if not create and database.file is not None and not database.file.is_file():
        raise _none(database)
    with database.reading() as connection:
        found = version_of(connection)
    if found == newest_version():
        return
    if found is not None:
        raise _other(database, found)
    if not create:
        raise _none(database)
    with database.writing() as connection:
        # Again: another writer may have made it meanwhile.
        if version_of(connection) is None:
            _need_free_names(database, connection)
            _migrate(connection)


def upgrade_store(url: str) -> Upgrade:
    """Brings a store to today's form.

    Raises:
        StoreError: there is no store.
        ConfigError: it is of a newer form.
    """
    database = Database(url)
    try:
        return _upgraded(database)
    finally:
        database.close()


def _upgraded(database: Database) -> Upgrade:
    if database.file is not None and not database.file.is_file():
        raise _none(database)
    with database.writing() as connection:
        before = version_of(connection)
        if before is None:
            raise _none(database)
        if before not in _known_versions():
            raise _other(database, before)
        _migrate(connection)
    return Upgrade(str(database), before, newest_version())


def _none(database: Database) -> StoreError:
    return StoreError(f"there is no store {database}: `iterppo store add` makes one")


def _other(database: Database, found: str) -> ConfigError:
    if found in _known_versions():
        return ConfigError(
            f"{database} is a store of the older form {found}, and this version needs {newest_version()}: run "
            f"`iterppo store upgrade {shlex.quote(str(database))}`"
        )
    return ConfigError(
        f"{database} is a store of the form {found}, which this version of lightning-iterppo is too old for (it knows "
        f"{newest_version()}): install a newer one"
    )


def _need_free_names(database: Database, connection: Connection) -> None:
    taken = sorted(set(sa.inspect(connection).get_table_names()) & set(Base.metadata.tables))
    if taken:
        raise ConfigError(f"{database} has a table {taken[0]} of somebody else's: give the store a database of its own")


def _migrate(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _known_versions() -> set[str]:
    return {script.revision for script in _script().walk_revisions()}


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    # A configuration file's value: a per cent sign in a path would begin a reference.
    place = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", place)
    config.set_main_option("path_separator", "os")
    return config
