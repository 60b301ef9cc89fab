"""Files of conversations: one JSON object a line, our own form or the ``chat`` form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_iterppo.conversation import Conversation, ConversationError
from lightning_iterppo.errors import LogFormatError
from lightning_iterppo.files import write_lines_atomically


def parse_line(path: Path, number: int, raw: bytes) -> Conversation | None:
    """The conversation on a line of a file, the first being 1; None for an empty line.

    Raises:
        LogFormatError: it is not a conversation.
    """
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        if not line.strip():
            return None
        return Conversation.from_json(json.loads(line))
    except UnicodeDecodeError as error:
        raise LogFormatError(path, number, f"not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise LogFormatError(path, number, f"not JSON ({error.msg} at column {error.colno})") from error
    except ConversationError as error:
        raise LogFormatError(path, number, str(error)) from error


def numbered_conversations(path: str | Path) -> Iterator[tuple[int, int, Conversation]]:
    """The conversations of a file, each with its line's number and the byte that the line begins at.

    Raises:
        LogFormatError: a line is not a conversation, with its number; or the file is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise LogFormatError(path, 0, "there is no such file")
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            conversation = parse_line(path, number, raw)
            if conversation is not None:
                yield number, offset, conversation
            offset += len(raw)


def iter_conversations(path: str | Path) -> Iterator[Conversation]:
    """The conversations of a file, one by one; empty lines are skipped.

    Raises:
        LogFormatError: a line is not a conversation, with its number; or the file is not there.
    """
    for _, _, conversation in numbered_conversations(path):
        yield conversation


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
    write_lines_atomically(path, map(_line, conversations))


def _line(conversation: Conversation) -> str:
    record = conversation.to_json()
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only write as an escape
        return json.dumps(record)
    return line
