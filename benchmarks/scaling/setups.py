"""Up to what size each set-up serves, and what breaks first beyond it, by the plan of ``iterppo doctor --plan``.

``python benchmarks/scaling/setups.py`` plans the recipe ``shop`` for typical shapes of several sizes and prints the
largest that fits; nothing is run. ``--write`` puts the table into ``docs/scaling.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill

from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.planning import memory_plan as parts
from lightning_iterppo.planning.memory_plan import Devices, Strategy, largest, moments_of
from lightning_iterppo.planning.plan import CONTEXT
from lightning_iterppo.planning.rehearsal import Rehearsal
from lightning_iterppo.planning.request import read_request

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "scaling" / "setups.json"
PAGE = HERE.parents[1] / "docs" / "scaling.md"
SIZES: Final = ("350M", "1B", "3B", "7B", "13B", "34B")
#: What makes the largest model fit: a conversation at a time, layers computed again, few conversations side by side.
THRIFTY: Final = ("policy=default", "trainer.micro_batch=1", "model.checkpointing=true", "loop.batch=16")
#: Of a process on a processor, about; on an accelerator what `plan` assumes.
PROCESS: Final = 500_000_000


@dataclass(frozen=True)
class SetUp:
    """A row of the table."""

    name: str
    memory: int
    devices: Devices
    accelerator: bool = True


def _gpus(count: int, strategy: Strategy, memory: int = 80) -> SetUp:
    name = f"one GPU of {memory} GB" if strategy == "one" else f"{count} × {memory} GB, {strategy}"
    return SetUp(name, memory * 10**9, Devices(count, strategy))


SET_UPS: Final = (
    SetUp("a processor with 24 GB", 24 * 10**9, Devices(), accelerator=False),
    _gpus(1, "one", 24),
    _gpus(1, "one", 80),
    _gpus(8, "ddp"),
    _gpus(8, "deepspeed"),
    _gpus(8, "fsdp"),
)


def rehearse(sizes: list[str]) -> list[dict[str, Any]]:
    """What each set-up holds at each size."""
    found = []
    for size in sizes:
        for kind in ("lora", "full"):
            words = [f"model={size}", f"model/adaptation={kind}", "trainer=gpu", "trainer.precision=32-true"]
            request = read_request("shop", [*words, "model.dtype=bfloat16", *THRIFTY])
            rehearsed = Rehearsal(request.config, request.recipe, request.work, accelerator=True).run()
            for set_up in SET_UPS:
                process = CONTEXT if set_up.accelerator else PROCESS
                moments = moments_of(rehearsed, request.recipe, request.work, set_up.devices, process=process)
                moment = largest(moments)
                own = {name: value for name, value in moments[moment].items() if name != parts.PROCESS}
                found.append(
                    {
                        "set_up": set_up.name,
                        "adaptation": kind,
                        "size": size,
                        "peak": sum(moments[moment].values()),
                        "fits": sum(moments[moment].values()) <= set_up.memory,
                        "moment": moment,
                        "first": max(own, key=lambda name: own[name]),
                    }
                )
        print(size, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the largest size that fits, and what the next one breaks by."""
    lines = ["| set-up | LoRA: up to | breaks first | full: up to | breaks first |", "| --- | --- | --- | --- | --- |"]
    for set_up in dict.fromkeys(row["set_up"] for row in rows):
        cells = [set_up]
        for kind in ("lora", "full"):
            own = [row for row in rows if row["set_up"] == set_up and row["adaptation"] == kind]
            fitting = [row for row in own if row["fits"]]
            broken = next((row for row in own if not row["fits"]), None)
            cells.append(f"{fitting[-1]['size']} ({fitting[-1]['peak'] / 1e9:.0f} GB)" if fitting else "–")
            cells.append(
                "–" if broken is None else f"{broken['first']} ({broken['size']}: {broken['peak'] / 1e9:.0f} GB)"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--write", action="store_true", help="the table into docs/scaling.md")
    arguments = parser.parse_args()
    rows = rehearse(arguments.sizes)
    print(table(rows))
    if arguments.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(RESULTS, {"command": "python benchmarks/scaling/setups.py --write", "rows": rows})
        fill(PAGE, {"setups": table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"])})


if __name__ == "__main__":
    main()
