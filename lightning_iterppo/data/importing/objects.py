"""Files of JSON objects: one a line, or one array of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lightning_iterppo.data.importing.records import BadRecord, Place
from lightning_iterppo.errors import LogFormatError

_CHUNK = 1 << 16
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")  # the beginning of a file that is one array
#: What decides where an element of an array ends; a backslash hides what follows it.
_MARK = re.compile(rb'\\.|[][{},"]', re.DOTALL)


def json_lines(path: Path) -> Iterator[tuple[Place, dict[str, Any] | BadRecord, int]]:
    """Every object, or why a line is none, with its place and how many bytes of the file are behind it.

    A file that begins with a bracket is one array of objects, on one line or many.

    Raises:
        LogFormatError: an array does not end, or something follows its end.
    """
    with open(path, "rb") as file:
        array = _ARRAY.match(file.read(_CHUNK))
        file.seek(0 if array is None else array.end())
        for place, raw, done in _lines(path, file) if array is None else _elements(path, file, array.group()):
            found: dict[str, Any] | BadRecord | None
            try:
                found = _parse(raw, first=array is None and place.number == 1)
                if found is None and array is not None:
                    raise BadRecord("not JSON", "a comma without a record before or behind it")
            except BadRecord as bad:
                found = bad
            if found is not None:
                yield place, found, done


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[Place, bytes, int]]:
    done = 0
    for number, raw in enumerate(file, start=1):
        done += len(raw)
        yield Place(path, number), raw, done


def _elements(path: Path, file: BinaryIO, before: bytes) -> Iterator[tuple[Place, bytes, int]]:
    """The elements of an array as they are written, one at a time, from behind its bracket ``before``."""
    element, depth, quoted = bytearray(), 0, False
    number, line, done = 1, 1 + before.count(b"\n"), len(before)
    while chunk := file.read(_CHUNK):
        while chunk.endswith(b"\\") and (more := file.read(1)):  # a backslash is not parted from what it hides
            chunk += more
        start = 0
        for mark in _MARK.finditer(chunk):
            sign = mark.group()
            if sign == b'"':
                quoted = not quoted
            elif quoted or len(sign) > 1:
                continue
            elif sign in b"[{":
                depth += 1
            elif depth:
                depth -= sign in b"]}"
            elif sign in b",]":
                element += chunk[start : mark.start()]
                start = mark.end()
                if sign == b"," or number > 1 or element.strip():
                    yield Place(path, number, line + _lines_before(element)), bytes(element.lstrip()), done + start
                number, line = number + 1, line + element.count(b"\n")
                element.clear()
                if sign == b"]":
                    _expect_nothing(path, line, file, chunk[start:])
                    return
        element += chunk[start:]
        done += len(chunk)
    line += _lines_before(element)
    raise LogFormatError(path, line, f"record {number}: not JSON: the file ends before the array does")


def _lines_before(element: bytearray) -> int:
    """The ends of lines that stand before what an element says."""
    return element[: len(element) - len(element.lstrip())].count(b"\n")


def _expect_nothing(path: Path, line: int, file: BinaryIO, rest: bytes) -> None:
    while not rest.strip():
        rest = file.read(_CHUNK)
        if not rest:
            return
    raise LogFormatError(path, line, "not JSON: something follows the array, which ends on this line")


def _parse(raw: bytes, *, first: bool) -> dict[str, Any] | None:
    """The object on a line, or an array's element; None for an empty one.

    Args:
        raw: the line.
        first: whether it is a file's first line, which may begin with a byte order mark.

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
        raise BadRecord("not UTF-8", f"{error.reason} at its byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise BadRecord("not Unicode", "half of a surrogate pair stands alone") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} of the record, " if error.lineno > 1 else ""
        raise BadRecord("not JSON", f"{error.msg} at {line}column {error.colno}") from error
    except ValueError as error:
        raise BadRecord("not JSON", "a whole number has too many digits") from error
    except RecursionError as error:
        raise BadRecord("not JSON", "it is nested too deeply") from error
    if not isinstance(record, dict):
        raise BadRecord("not a JSON object", f"found {type(record).__name__}")
    return record


def _no_number(word: str) -> NoReturn:
    raise BadRecord("not JSON", f"{word} is no number of JSON; say null, or nothing, where one is not known")
