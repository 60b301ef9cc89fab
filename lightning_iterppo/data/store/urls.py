"""URLs as they may be shown: never with a password. No SQLAlchemy, so that every error line can go through here."""

from __future__ import annotations

import re

_HIDDEN = "***"
#: ``scheme://user:PASSWORD@host``, and ``?password=PASSWORD``, which PostgreSQL's library takes too.
_IN_AUTHORITY = re.compile(r"(://[^\s:/?#@]*:)([^\s?#]*)(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&](?:ssl)?password=)([^\s&#'\"]*)")


def without_password(text: str) -> str:
    """A text with the passwords of the URLs in it replaced by stars."""
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", _IN_AUTHORITY.sub(rf"\1{_HIDDEN}", text))


def holds_password(url: str) -> bool:
    """Whether a URL has a password in it."""
    return without_password(url) != url
