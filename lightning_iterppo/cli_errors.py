"""Exceptions as one line for a person: what is wrong and what to do. What is not recognised here is a defect."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from lightning_iterppo.cli_output import quoted
from lightning_iterppo.conversation import ConversationError
from lightning_iterppo.errors import IterPPOError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explain(error: Exception, run: Path | None, resumable: bool) -> str | None:
    """What to tell a user, or None if it is not the user's to solve.

    Args:
        error: what was raised.
        run: where the command was writing.
        resumable: whether ``run`` is a run that `iterppo train --resume` can go on with.
    """
    full = _disk_full(error)
    if full is not None:
        written = f" while writing {full or run}" if full or run else ""
        then = f"run iterppo train --resume {quoted(run)}" if run and resumable else "run the command again"
        return f"disk is full{written}; free space and {then}"
    if isinstance(error, IterPPOError | ConversationError):
        return str(error)
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {error.filename}"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; lower the batch_conversations of the phase, loop.batch or sampling.max_new_tokens"
    if type(error).__module__.split(".")[0] == "jinja2":
        return f"the model's chat template fails: {error}"
    if type(error).__module__.split(".")[0] in ("hydra", "omegaconf") or _is_misconfiguration(error):
        return str(error)
    return None


def was_interrupted(error: BaseException) -> bool:
    """Whether a KeyboardInterrupt is what led to this exception."""
    return any(isinstance(each, KeyboardInterrupt) for each in _chain(error))


def _disk_full(error: BaseException) -> str | None:
    """The file that did not fit, empty if unknown; None if the disk is not full.

    torch and safetensors write from C++ and Rust, and raise their own exceptions with the reason in the text.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _FULL:
            return str(each.filename or "")
        if "No space left on device" in str(each) or "PytorchStreamWriter failed writing" in str(each):
            return ""
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    here: BaseException | None = error
    while here is not None:
        yield here
        here = here.__cause__ or here.__context__


def _is_misconfiguration(error: Exception) -> bool:
    """Lightning's word for a setting that cannot be. If nobody imported Lightning, it is not Lightning's."""
    module = sys.modules.get("lightning.fabric.utilities.exceptions")
    kind = getattr(module, "MisconfigurationException", None)
    return isinstance(kind, type) and isinstance(error, kind)
