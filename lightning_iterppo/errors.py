"""Everything that can be wrong with what a user gave, as exceptions whose text is one line: what, where, what to do."""

from __future__ import annotations

import traceback
from pathlib import Path

__all__ = [
    "ConfigError",
    "CustomerError",
    "EngineError",
    "IterPPOError",
    "LogDataError",
    "LogFormatError",
    "ModelNotFoundError",
    "RunDirectoryError",
    "StoreError",
    "describe_exception",
]


def describe_exception(error: BaseException, *, skip: str | None = None) -> str:
    """An exception of somebody else's code as one line: its type, its text, and the file and line it came from.

    Args:
        error: an exception that was raised.
        skip: frames of files with this in their path are not where it came from.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if skip is None or skip not in f.filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


class IterPPOError(Exception):
    """The root of what the library raises on purpose; the command line prints its text and exits with 2.

    ::

        IterPPOError
        ├── ConfigError          a recipe: an unknown name or key, a value of the wrong type or outside its range
        ├── ModelNotFoundError   a language model that is neither installed, nor in a cache, nor at a path
        ├── LogFormatError       a line of a file of logs that is not a conversation
        ├── LogDataError         conversations that say too little to learn from: no outcome is known, nobody answered
        ├── RunDirectoryError    a directory that is not a run, or already holds one
        ├── StoreError           a store of conversations that cannot be used, or says something else already
        ├── EngineError          a server that samples for the policy and cannot be reached, or answers what cannot be
        └── CustomerError        a customer that cannot be imported, made, or breaks its protocol

    A defect of the library is none of these, and neither is a full disk, which stays the OSError that it is.
    """


class ConfigError(IterPPOError):
    """A recipe or an override is wrong. The text names the key, what was expected, and the nearest valid key."""


class ModelNotFoundError(IterPPOError):
    """A language model cannot be found. The text says where it was looked for and how to get it."""


class LogFormatError(IterPPOError):
    """A line of a log file cannot be read.

    Args:
        path: the file.
        line: the line's number, the first being 1.
        reason: what is wrong with it, and what was expected.
    """

    def __init__(self, path: str | Path, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")
        self.path = Path(path)
        self.line = line
        self.reason = reason

    def __reduce__(self) -> tuple[type[LogFormatError], tuple[Path, int, str]]:
        # The default pickles only the message, and a data loader's worker hands its exception over pickled.
        return type(self), (self.path, self.line, self.reason)


class LogDataError(IterPPOError):
    """Conversations can be read and yet not be learnt from. The text says what they lack."""


class RunDirectoryError(IterPPOError):
    """A directory cannot serve as a run: it is none, it is incomplete, or it already holds another one."""


class StoreError(IterPPOError):
    """A store of conversations is not there, cannot be reached, or says something else already. The text says which."""


class CustomerError(IterPPOError):
    """A customer cannot be used: its import path is wrong, or it does not do what `customers.Customer` says."""


class EngineError(IterPPOError):
    """A server that should sample from the policy does not. The text says which, and what it said."""
