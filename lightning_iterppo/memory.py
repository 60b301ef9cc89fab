"""How much memory is free on a device, and how much some work takes: what an automatic micro-batch is chosen by."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.machine import release_memory
from lightning_iterppo.trainer import world_size

_NEEDED = ("mem_get_info", "memory_reserved", "memory_allocated", "reset_peak_memory_stats", "max_memory_allocated")
# Where a container's limit is, by either version of Linux's control groups: folder, limit, use.
_CONTAINERS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_LOOKS_EVERY = 0.001  # seconds


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device.

    Raises:
        ConfigError: the device does not tell.
    """
    if device.type != "cpu":
        kind = _accelerator(device)
        held_free = int(kind.memory_reserved(device)) - int(kind.memory_allocated(device))
        return int(kind.mem_get_info(device)[0]) + held_free
    available = int(psutil.virtual_memory().available)
    contained = _container_memory()
    return max(0, available if contained is None else min(available, contained)) // world_size()


def memory_taken(device: torch.device, work: Callable[[], object]) -> int:
    """Does some work and gives the bytes by which memory grew at most meanwhile.

    Exact where PyTorch counts; on the processor the operating system is asked every millisecond.

    Raises:
        ConfigError: the device does not tell.
    """
    gc.collect()
    if device.type != "cpu":
        kind = _accelerator(device)
        kind.reset_peak_memory_stats(device)
        before = int(kind.memory_allocated(device))
        work()
        return int(kind.max_memory_allocated(device)) - before
    release_memory()
    process, done = psutil.Process(), threading.Event()
    before = peak = int(process.memory_info().rss)

    def look() -> None:
        nonlocal peak
        while not done.wait(_LOOKS_EVERY):
            peak = max(peak, int(process.memory_info().rss))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        work()
    finally:
        done.set()
        looking.join()
    peak = max(peak, int(process.memory_info().rss))
    release_memory()
    return peak - before


def _accelerator(device: torch.device) -> Any:
    kind = torch.get_device_module(device)
    if not all(hasattr(kind, name) for name in _NEEDED):
        raise ConfigError(
            f"trainer.micro_batch is auto, but {device.type} does not tell how much memory is free: give a number"
        )
    return kind


def _container_memory() -> int | None:
    """What a container's limit leaves; None outside one. Cached files count as free: they make way."""
    for folder, limit, use in _CONTAINERS:
        try:
            most, used = ((Path(folder) / name).read_text().strip() for name in (limit, use))
            lines = (Path(folder) / "memory.stat").read_text().splitlines()
        except OSError:
            continue  # not this version, or no control groups at all
        counts = dict(line.split(maxsplit=1) for line in lines)
        return None if most == "max" else int(most) - int(used) + int(counts.get("inactive_file", 0))
    return None
