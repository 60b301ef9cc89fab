"""The conversation store: conversations and what became of them in a database, SQLite or PostgreSQL.

`ConversationStore` writes and reads; `StoredConversations` is what is in one, as logs that stay where they are. What is
named here is loaded when it is asked for: the packages it needs are those of the extra ``store``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_iterppo.extras import need

if TYPE_CHECKING:
    from lightning_iterppo.data.store.conversation_store import ConversationStore
    from lightning_iterppo.data.store.figures import store_figures
    from lightning_iterppo.data.store.schema import upgrade_store
    from lightning_iterppo.data.store.stored import StoredConversations

__all__ = ["ConversationStore", "StoredConversations", "store_figures", "upgrade_store"]

_HOMES = {
    "ConversationStore": "conversation_store",
    "StoredConversations": "stored",
    "store_figures": "figures",
    "upgrade_store": "schema",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for.

    Raises:
        ConfigError: the packages of the extra are not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in ("sqlalchemy", "alembic"):
        need(package, "for a store of conversations", "store")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
