"""Files that are either whole or not there: written beside their place, flushed to the disk, then renamed into it.

A full disk (OSError with ENOSPC) and any other error of the system is raised as it came, after the half-written
temporary was removed; what stood in the place before still stands there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "flush",
    "replace_directory",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_lines_atomically",
    "write_text_atomically",
]


def write_bytes_atomically(path: str | Path, content: bytes) -> None:
    """Writes ``content``; a reader finds the old file or the new one, never a part. Makes missing parents."""
    _write_atomically(path, [content])


def write_text_atomically(path: str | Path, text: str) -> None:
    """The same of ``text``, as UTF-8."""
    write_bytes_atomically(path, text.encode())


def write_lines_atomically(path: str | Path, lines: Iterable[str]) -> None:
    """Writes lines, each without its newline, as they come, so that they need not fit into memory; else the same."""
    _write_atomically(path, ((line + "\n").encode() for line in lines))


def _write_atomically(path: str | Path, parts: Iterable[bytes]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "tmp")
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_json_atomically(path: str | Path, obj: Any) -> None:
    """Writes ``obj`` as indented JSON with a final newline.

    Raises:
        ValueError: a number is not finite; JSON has no such number, and a figure that is not known is null.
    """
    write_text_atomically(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replace_directory(path: str | Path) -> Iterator[Path]:
    """Gives an empty directory to fill, which takes the place of ``path`` when the block ends without an error.

    What stood at ``path`` is moved aside first and removed last, so that at every moment one whole version is on the
    disk. On an error the new one is removed and the old one stays.

    Args:
        path: where the directory shall be; missing parents are made.

    Yields:
        The temporary directory, a sibling of ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "tmp")
    temporary.mkdir()
    old = _sibling(path, "old")
    try:
        yield temporary
        _flush_tree(temporary)
        if path.exists():
            # A directory cannot be renamed onto one that has files in it.
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)
    if old.is_dir() and not old.is_symlink():
        # The new one is in place; an old one that cannot be removed wholly does no harm.
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _sibling(path: Path, suffix: str) -> Path:
    """A hidden name beside ``path`` that nobody else uses: only within one file system is a rename atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{suffix}")


def flush(path: str | Path) -> None:
    """Flushes a file's content or a directory's entries to the disk."""
    if os.name == "nt":
        return  # Windows flushes only what is open for writing, and opens no directory.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems flush no directories; theirs are in order without it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _flush_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            flush(os.path.join(directory, name))
        flush(directory)
