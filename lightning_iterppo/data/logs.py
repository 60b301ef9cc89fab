"""Files of conversations: one JSON object a line, our own form or the ``chat`` form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_iterppo.conversation import Conversation, ConversationError
from lightning_iterppo.errors import LogFormatError
from lightning_iterppo.files import write_text_atomically


def iter_conversations(path: str | Path) -> Iterator[Conversation]:
    """The conversations of a file, one by one; empty lines are skipped.

    Raises:
        LogFormatError: a line is not a conversation, with its number; or the file is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise LogFormatError(path, 0, "there is no such file")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if not line.strip():
                    continue
                yield Conversation.from_json(json.loads(line))
            except UnicodeDecodeError as error:
                raise LogFormatError(path, number, f"not UTF-8 ({error.reason} at byte {error.start})") from error
            except json.JSONDecodeError as error:
                raise LogFormatError(path, number, f"not JSON ({error.msg} at column {error.colno})") from error
            except ConversationError as error:
                raise LogFormatError(path, number, str(error)) from error


def read_conversations(paths: str | Path | Iterable[str | Path]) -> list[Conversation]:
    """All conversations of one file or several.

    Raises:
        LogFormatError: a line is not a conversation, or a file holds none.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    found: list[Conversation] = []
    for file in files:
        before = len(found)
        found.extend(iter_conversations(file))
        if len(found) == before:
            raise LogFormatError(file, 0, "the file holds no conversation")
    return found


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> None:
    """One conversation a line; the file is whole or not there."""
    lines = [json.dumps(c.to_json(), ensure_ascii=False) for c in conversations]
    write_text_atomically(path, "".join(line + "\n" for line in lines))
