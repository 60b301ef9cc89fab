"""A password is never shown."""

from __future__ import annotations

import pytest

from lightning_iterppo.data.store.urls import holds_password, without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me:***@host/x"),
        ("at postgresql+psycopg://me:se:cr/et@host:5432/x, and", "at postgresql+psycopg://me:***@host:5432/x, and"),
        ("postgresql://me:secret@1@host/x", "postgresql://me:***@host/x"),
        ("postgresql:///x?host=/tmp&password=secret&user=me", "postgresql:///x?host=/tmp&password=***&user=me"),
        ("postgresql:///x?sslpassword=secret", "postgresql:///x?sslpassword=***"),
        ("postgresql://:secret@host/x", "postgresql://:***@host/x"),
    ],
)
def test_it_is_taken_out(text: str, shown: str) -> None:
    assert without_password(text) == shown and holds_password(text) and not holds_password("postgresql://me@host/x")


@pytest.mark.parametrize(
    "text", ["store.db", "postgresql://me@host:5432/x", "at 10:30 mail anna@shop.example", "a: b@c"]
)
def test_other_text_stays(text: str) -> None:
    assert without_password(text) == text and not holds_password(text)
