"""One PPO update, generation included: this library against TRL 1.12.0, the last with a PPO trainer.

``benchmarks/speed/setup.sh`` makes TRL's environment first. ``python benchmarks/speed/update.py lora`` compares LoRA of
rank 16 on all linear maps with this library's same, and with adapters on the top 10 and 4 of 30 layers; ``full`` and
``full-float32`` compare full fine-tuning, ``settings`` TRL with itself. The sides make their updates in turn, in
processes of their own. ``smoke`` is a quarter of the work, in minutes; with ``--check`` it fails where this library has
become slower against TRL than its record says, by more than `SLOWER`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from records import RESULTS, save
from sides import Side, interleave, ratio
from transformers import AutoTokenizer

from lightning_iterppo.models.smollm2 import smollm2_directory

HERE = Path(__file__).resolve().parent
PEER = HERE / ".venv-trl-1.12.0" / "bin" / "python"
#: What one update is.
WORK: Final = {
    "seed": 1,
    "episodes": 16,
    "prompt_tokens": 192,
    "response_tokens": 32,
    "ppo_epochs": 2,
    "micro_batch": 4,
    "rank": 16,
}
#: Of the comparison ``smoke``.
SMOKE: Final = {"episodes": 4}
#: So many times slower against TRL than recorded is a defect and not a machine's mood.
SLOWER: Final = 1.5
#: Prompts there are: several updates' worth.
PROMPTS: Final = 64
#: The sides of each comparison: TRL's first. It computes in float32 and without activation checkpointing, which is how
#: it is fastest on a processor (``settings`` shows that); ours takes frozen weights in the type that suits the machine.
SIDES: Final[dict[str, dict[str, list[str]]]] = {
    "lora": {
        "trl": ["side_trl.py", "--adaptation", "lora"],
        "ours": ["side_ours.py"],
        "ours, top 10 layers": ["side_ours.py", "--top-layers", "10"],
        "ours, top 4 layers": ["side_ours.py", "--top-layers", "4"],
        "ours, float32": ["side_ours.py", "--dtype", "float32"],
        "ours, top 10 layers, float32": ["side_ours.py", "--dtype", "float32", "--top-layers", "10"],
        "ours, top 4 layers, float32": ["side_ours.py", "--dtype", "float32", "--top-layers", "4"],
    },
    "full": {
        "trl": ["side_trl.py", "--adaptation", "full"],
        "ours, bf16-mixed and checkpointing": [
            *("side_ours.py", "--adaptation", "full", "--precision", "bf16-mixed", "--checkpointing"),
        ],
    },
    # By itself: all three sides at once do not fit into 23 GB.
    "full-float32": {
        "trl": ["side_trl.py", "--adaptation", "full"],
        "ours, float32": ["side_ours.py", "--adaptation", "full"],
    },
    "smoke": {
        "trl": ["side_trl.py", "--adaptation", "lora"],
        "ours, float32": ["side_ours.py", "--dtype", "float32"],
        "ours, top 10 layers, float32": ["side_ours.py", "--dtype", "float32", "--top-layers", "10"],
    },
    "settings": {
        "trl": ["side_trl.py", "--adaptation", "lora"],
        "trl, bf16": ["side_trl.py", "--adaptation", "lora", "--bf16"],
        "trl, its defaults": [
            "side_trl.py",
            "--adaptation",
            "lora",
            "--bf16",
            "--checkpointing",
        ],
    },
}


def prompts(tokenizer: Any, count: int, tokens: int, seed: int) -> list[str]:
    """Texts of so many tokens each, of words that are one token."""
    generator = random.Random(seed)
    words = [w for w in (f" {word}" for word in _WORDS) if len(tokenizer.encode(w, add_special_tokens=False)) == 1]
    return ["".join(generator.choices(words, k=tokens)) for _ in range(count)]


_WORDS: Final = (
    "the a to of and in it for on with is we you have this that not what how about price bag shoes light small large "
    "red blue green new old good best cheap today order delivery size color order week month store online call send "
    "help please thanks maybe yes no more less than very much water house garden kitchen table chair lamp phone"
).split()


def check(found: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Ends with 1 where a side is slower against TRL than its record by more than `SLOWER`."""
    slow = [
        f"{side}: {ratios['speed'][0]:.2f} times as fast as TRL, {recorded[side]['speed'][0]:.2f} in the record"
        for side, ratios in found.items()
        if ratios["speed"][0] * SLOWER < recorded[side]["speed"][0]
    ]
    if slow:
        sys.exit("slower than it was: " + "; ".join(slow))


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=list(SIDES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sides", nargs="+", help="of the comparison, trl always the first")
    parser.add_argument("--check", action="store_true", help="against the record, which stays")
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    parser.add_argument("--work", nargs="+", default=[], metavar="KEY=NUMBER", help="other work")
    arguments = parser.parse_args()
    if not PEER.is_file():
        sys.exit("TRL's environment is not there: run benchmarks/speed/setup.sh first")
    smaller = SMOKE if arguments.comparison == "smoke" else {}
    work: dict[str, Any] = {**WORK, **smaller, **{k: int(v) for k, v in (o.split("=") for o in arguments.work)}}
    model = str(smollm2_directory())
    work["prompts"] = prompts(AutoTokenizer.from_pretrained(model), PROMPTS, work["prompt_tokens"], work["seed"])
    chosen = SIDES[arguments.comparison]
    chosen = {name: chosen[name] for name in arguments.sides or chosen}
    with tempfile.TemporaryDirectory() as directory:
        task = Path(directory) / "work.json"
        task.write_text(json.dumps(work), encoding="utf-8")
        sides = [
            Side(
                name,
                [
                    str(PEER) if script == "side_trl.py" else sys.executable,
                    *(str(HERE / script), model, str(task), *options),
                ],
                Path(directory) / f"{name}.log",
            )
            for name, (script, *options) in chosen.items()
        ]
        interleave(sides, arguments.pairs)
    peer, *own = sides
    content: dict[str, Any] = {
        "work": {key: value for key, value in work.items() if key != "prompts"},
        "sides": {side.name: side.record() for side in sides},
        "ratios": {
            side.name: {
                "speed": ratio(peer, side),
                "memory": side.peak_memory_bytes / peer.peak_memory_bytes,
            }
            for side in own
        },
    }
    for side in sides:
        print(f"{side.name}: {statistics.median(side.seconds):.1f} s, {side.peak_memory_bytes / 1e9:.2f} GB", end="")
        if side is not peer:
            middle, low, high = ratio(peer, side)
            share = side.peak_memory_bytes / peer.peak_memory_bytes
            print(f"; {middle:.2f} ({low:.2f} to {high:.2f}) times as fast as TRL, {share:.2f} of its memory", end="")
        print()
    name = f"update-{arguments.comparison}"
    if arguments.check:
        stored = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        check(content["ratios"], stored["ratios"])
    elif not arguments.trial:
        save(name, content)


if __name__ == "__main__":
    main()
