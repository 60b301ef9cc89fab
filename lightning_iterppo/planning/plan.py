"""The plan itself: memory of a device and time of an iteration, what breaks first, and the one key that helps most."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import psutil
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_iterppo.models.backbones import NF4
from lightning_iterppo.planning import memory_plan as parts
from lightning_iterppo.planning.memory_plan import PARTS, largest, moments_of
from lightning_iterppo.planning.rehearsal import Rehearsal, Rehearsed
from lightning_iterppo.planning.request import Request
from lightning_iterppo.planning.speed import EFFICIENCY, Speed, measured_speed, nominal_speed, process_memory
from lightning_iterppo.planning.time_plan import seconds_of

#: What a process takes of an accelerator before there is a tensor: an assumption where none is at hand to ask.
CONTEXT: Final = 600_000_000


@dataclass(frozen=True)
class Plan:
    """What was found.

    Args:
        request: what was asked.
        found: the rehearsal.
        moments: bytes of each part at each moment.
        seconds: of each phase of an iteration.
        memory: bytes of a device.
        speed: of a device.
        notes: what of it is assumed, and what is not counted.
    """

    request: Request
    found: Rehearsed
    moments: dict[str, dict[str, int]]
    seconds: dict[str, float]
    memory: int
    speed: Speed
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes at the largest moment."""
        return sum(self.moments[self.moment].values())

    @property
    def moment(self) -> str:
        """The largest moment."""
        return largest(self.moments)

    @property
    def fits(self) -> bool:
        """Whether a device has room for it."""
        return self.peak <= self.memory

    @property
    def first(self) -> str:
        """The largest part of the largest moment, which more of anything would break first."""
        found = self.moments[self.moment]
        return max((name for name in found if name != parts.PROCESS), key=lambda name: found[name])

    @property
    def help(self) -> str:
        """The key that makes that part smaller."""
        recipe = self.request.recipe
        full = recipe.model.adaptation.kind == "full"
        if self.first == parts.WORKING:
            if self.moment in ("collect", "sample"):
                return _halved("loop.batch", recipe.loop.batch)
            if recipe.trainer.micro_batch != 1 and recipe.policy.batch_conversations > 1:
                return "trainer.micro_batch=1"
            return "model.window=128" if recipe.model.checkpointing else "model.checkpointing=true"
        if self.first == parts.CACHE:
            return _halved("loop.batch", recipe.loop.batch)
        if self.first == parts.FEATURES:
            return "model.adaptation.keep_features=false"
        if full:
            return "model/adaptation=lora"
        if self.first == parts.WEIGHTS:
            return "model.dtype=bfloat16" if recipe.model.dtype == "float32" else "a smaller model"
        return _halved("model.adaptation.rank", recipe.model.adaptation.rank)

    def to_json(self) -> dict[str, Any]:
        """JSON types, sizes in bytes."""
        request = self.request
        return {
            "model": request.model,
            "devices": request.devices.count,
            "strategy": request.devices.strategy,
            "adaptation": request.recipe.model.adaptation.kind,
            "memory": {
                "moments": self.moments,
                "largest": self.moment,
                "peak": self.peak,
                "device": self.memory,
                "fits": self.fits,
            },
            "seconds": {**self.seconds, "iteration": sum(self.seconds.values())},
            "speed": asdict(self.speed),
            "breaks_first": self.first,
            "helps": self.help,
            "notes": list(self.notes),
        }


def _halved(key: str, value: int) -> str:
    return f"{key}={max(1, value // 2)}"


def make_plan(request: Request) -> Plan:
    """Rehearses, and measures this machine where nothing else is said.

    Raises:
        ConfigError: a number does not fit the model, or its speed cannot be measured here.
    """
    process = _process(request)
    own = request.devices.own(request.recipe)
    found = Rehearsal(request.config, own, request.work, accelerator=request.accelerator).run()
    moments = moments_of(found, own, request.work, request.devices, process=process)
    if request.flops is None:
        speed = measured_speed(request.config, own, request.work, found)
    else:
        speed = nominal_speed(
            found,
            own,
            flops=request.flops,
            efficiency=request.efficiency or EFFICIENCY,
            bandwidth=request.bandwidth,
        )
    seconds = seconds_of(found, own, request.work, request.devices, speed)
    return Plan(request, found, moments, seconds, request.memory or _device_memory(request), speed, _notes(request))


def _process(request: Request) -> int:
    if not request.accelerator:
        return process_memory(request.source, request.recipe.model.dtype)
    if not torch.accelerator.is_available():
        return CONTEXT
    kind = torch.get_device_module(torch.accelerator.current_accelerator())
    torch.zeros(1, device=torch.accelerator.current_accelerator())
    free, total = kind.mem_get_info()
    return int(total - free)


def _device_memory(request: Request) -> int:
    if request.accelerator and torch.accelerator.is_available():
        return int(torch.get_device_module(torch.accelerator.current_accelerator()).mem_get_info()[1])
    return int(psutil.virtual_memory().total) // request.devices.count


def _notes(request: Request) -> tuple[str, ...]:
    work, devices = request.work, request.devices
    found = [
        f"assumed of conversations: {work.tokens} tokens, {work.turns} turns, responses of {work.response} tokens "
        "(tokens=, turns=, response=)",
        "memory: the library's own passes, rehearsed without weights; fragments of the allocator are not counted",
    ]
    if not request.accelerator:
        found.append(
            "on a processor, conversations of many lengths leave the memory in pieces: a run can hold twice as much"
        )
    elif not torch.accelerator.is_available():
        found.append("no accelerator is here: what a process takes of one by itself is assumed")
    if request.flops is None:
        found.append("time: estimated from two models of a few such layers, timed on this machine")
    else:
        share = request.efficiency or EFFICIENCY
        found.append(
            f"time: estimated from flops={request.flops:g} of which {share:.0%} are reached (efficiency=), and "
            "bandwidth= for single tokens; nothing was measured"
        )
    if request.recipe.model.dtype == NF4:
        found.append("model.dtype=nf4 is planned as bfloat16: the frozen maps take a quarter of that, and more time")
    if devices.count > 1:
        found.append("what processes tell each other takes time that is not counted")
    return tuple(found)


def render(plan: Plan) -> RenderableType:
    """The plan as a table for a rich console."""
    request = plan.request
    table = Table(show_edge=False, pad_edge=False, box=None)
    table.add_column(f"GB of each of {request.devices.count}" if request.devices.count > 1 else "GB")
    for moment in plan.moments:
        table.add_column(moment, justify="right", style="bold" if moment == plan.moment else "")
    for name in PARTS:
        sizes = [found.get(name) for found in plan.moments.values()]
        if any(sizes):
            table.add_row(name, *("" if size is None else f"{size / 1e9:.2f}" for size in sizes))
    table.add_row("sum", *(f"{sum(found.values()) / 1e9:.2f}" for found in plan.moments.values()), style="bold")
    verdict = Text("fits" if plan.fits else "does not fit", style="bold green" if plan.fits else "bold red")
    verdict.append(f": {plan.peak / 1e9:.1f} GB of {plan.memory / 1e9:.1f} GB, while it does: {plan.moment}")
    times = ", ".join(f"{name} {_told(each)}" for name, each in plan.seconds.items())
    shared = request.devices
    lines = [
        f"{request.model}, {request.recipe.model.adaptation.kind}, {shared.count} × {shared.strategy}",
        f"an iteration takes about {_told(sum(plan.seconds.values()))}: {times}",
        f"reading at {plan.speed.reading / 1e9:.0f}, training at {plan.speed.training / 1e9:.0f} GFLOP/s"
        + (f"; a product of matrices alone {plan.speed.product / 1e9:.0f}" if plan.speed.product else ""),
        f"breaks first: {plan.first}; what helps most: {plan.help}",
    ]
    notes = Text("\n".join(f"· {note}" for note in plan.notes), style="dim")
    return Group(Text(lines[0], style="bold"), "", table, "", verdict, *map(Text, lines[1:]), "", notes)


def _told(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
