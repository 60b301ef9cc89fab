"""What a run was measured on: the machine, how much memory the process took at most, and keeping that low."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

import torch


def describe_machine() -> dict[str, Any]:
    """Processor, cores, accelerator and versions, for `summary.json`."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": None if accelerator is None else str(accelerator),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module's word has to do
    return platform.processor() or platform.machine()


def release_memory() -> None:
    """Gives freed memory back to the operating system, where the C library keeps it otherwise.

    Batches of ever other lengths leave glibc's heap in pieces: without this a run on the CPU holds twice what it uses.
    It costs some milliseconds. Does nothing with another C library.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # musl
        return None
    return found


_MALLOC_TRIM = _malloc_trim()


def peak_memory_bytes() -> int | None:
    """The most memory this process has held, by the operating system's count; None where it does not count."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
