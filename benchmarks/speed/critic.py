"""Fitting Q on logged turns: this library against transformers' Trainer with a sequence-classification head.

``python benchmarks/speed/critic.py``: the same model, LoRA on the same maps, the same logged conversations of the shop,
one epoch each in turn. What differs is that a pass of a conversation scores all its turns here, and one of them there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from records import save
from sides import Side, interleave, ratio
from update import HERE

from lightning_iterppo.customers.shop_agent import scripted_logs
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.models.smollm2 import smollm2_directory


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    arguments = parser.parse_args()
    model = str(smollm2_directory())
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory) / "logs.jsonl"
        write_conversations(logs, scripted_logs(arguments.conversations, seed=1))
        task = Path(directory) / "work.json"
        work = {"file": str(logs), "conversations_a_step": 4, "rows_a_pass": 8, "passes_a_step": 2}
        task.write_text(json.dumps(work), encoding="utf-8")
        peer, own = (
            Side(name, [sys.executable, str(HERE / "side_critic.py"), name, model, str(task)], Path(directory) / name)
            for name in ("transformers", "ours")
        )
        interleave([peer, own], arguments.pairs)
    for side in (peer, own):
        rate = side.others[0]["turns"] / statistics.median(side.seconds)
        print(f"{side.name}: {rate:.2f} turns/s, {side.others[0]}, {side.peak_memory_bytes / 1e9:.2f} GB")
    middle, low, high = ratio(peer, own)
    print(f"ours is {middle:.2f} ({low:.2f} to {high:.2f}) times as fast")
    if not arguments.trial:
        content = {
            "work": {**work, "file": None, "conversations": arguments.conversations},
            "sides": {side.name: side.record() for side in (peer, own)},
            "ratio": (middle, low, high),
        }
        save("critic", content)


if __name__ == "__main__":
    main()
