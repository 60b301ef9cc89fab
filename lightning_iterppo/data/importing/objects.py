"""A line of a file as a JSON object."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from lightning_iterppo.data.importing.records import BadRecord


def parse(raw: bytes, *, first: bool) -> dict[str, Any] | None:
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
