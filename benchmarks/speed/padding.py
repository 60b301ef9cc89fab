"""What it gains to compute short rows apart from long ones: `model.trim_padding` on and off.

``python benchmarks/speed/padding.py``: steps of imitating the shop's logs in random batches, LoRA on all layers, the
two sides in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from records import save
from sides import Side, interleave, ratio
from update import HERE


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--steps", type=int, default=2, help="in one piece of work")
    parser.add_argument("--top-layers", type=int, help="that are adapted; default: all")
    parser.add_argument("--dtype", default="auto", help="of the frozen weights")
    parser.add_argument("--seed", type=int, default=1, help="of the logs")
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    arguments = parser.parse_args()
    work = {key: getattr(arguments, key) for key in ("batch", "steps", "top_layers", "dtype", "seed")}
    with tempfile.TemporaryDirectory() as directory:
        task = Path(directory) / "work.json"
        task.write_text(json.dumps(work), encoding="utf-8")
        padded, trimmed = (
            Side(name, [sys.executable, str(HERE / "side_padding.py"), name, str(task)], Path(directory) / name)
            for name in ("padded", "trimmed")
        )
        # The first passes are several times as slow where memory is given to a machine only when it is touched.
        interleave([padded, trimmed], arguments.pairs, warm_ups=3)
    times = ratio(padded, trimmed)
    memory = trimmed.peak_memory_bytes / padded.peak_memory_bytes
    found = padded.others[0]
    print(f"{found['padded'] / found['tokens']:.2f} times as many tokens with padding as without")
    print("trimmed is {:.2f} ({:.2f} to {:.2f}) times as fast".format(*times), f"and takes {memory:.2f} of the memory")
    if not arguments.trial:
        content = {
            "work": work,
            "sides": {side.name: side.record() for side in (padded, trimmed)},
            "ratio": times,
            "memory": memory,
        }
        save("padding", content)


if __name__ == "__main__":
    main()
