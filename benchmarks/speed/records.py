"""What a command of this folder measured, as JSON beside where, when and how."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.machine import describe_machine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed"


def save(name: str, content: Mapping[str, Any]) -> None:
    """Writes a result of the command that runs, as ``NAME.json``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", f"benchmarks/speed/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        **content,
    }
    write_json_atomically(RESULTS / f"{name}.json", record)
