"""Files with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lightning_iterppo.data.importing.records import BadRecord, Place


def json_lines(path: Path) -> Iterator[tuple[Place, dict[str, Any] | BadRecord, int]]:
    """Every object, or why a line is none, with its place and how many bytes of the file are behind it."""
    done = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            done += len(raw)
            found: dict[str, Any] | BadRecord | None
            try:
                found = _parse(raw, first=number == 1)
            except BadRecord as bad:
                found = bad
            if found is not None:
                yield Place(path, number), found, done


def _parse(raw: bytes, *, first: bool) -> dict[str, Any] | None:
    """The object on a line; None for an empty line.

    Args:
        raw: the line.
        first: whether it is a file's first, which may begin with a byte order mark.

    Raises:
        BadRecord: it holds no JSON object.
    """
    try:
        line = raw.decode("utf-8-sig" if first else "utf-8")
        if not line.strip():
            return None
        record = json.loads(line, parse_constant=_no_number)
        if "\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", f"{error.reason} at byte {error.start} of the line") from error
    except UnicodeEncodeError as error:
        raise BadRecord("not Unicode", "half of a surrogate pair stands alone") from error
    except json.JSONDecodeError as error:
        raise BadRecord("not JSON", f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRecord("not JSON", "it is nested too deeply") from error
    if not isinstance(record, dict):
        raise BadRecord("not a JSON object", f"found {type(record).__name__}")
    return record


def _no_number(word: str) -> NoReturn:
    raise BadRecord("not JSON", f"{word} is no number of JSON; say null, or nothing, where one is not known")
