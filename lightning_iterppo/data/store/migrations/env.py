"""What Alembic runs: the steps, in the transaction that `schema` has begun."""

from __future__ import annotations

from alembic import context

from lightning_iterppo.data.store.models import Base
from lightning_iterppo.data.store.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
