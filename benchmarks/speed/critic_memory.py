"""Peak memory of importing, of fitting Q, and of scoring, on logs of ever more turns.

``python benchmarks/speed/critic_memory.py``: writes seeded logs of 10 thousand, 100 thousand and a million turns, runs
``iterppo import``, ``iterppo fit-critic`` and then ``iterppo score`` on each, in a process of its own, with a model of
two layers made from nothing, and records the most memory that the operating system counted for each process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from records import save

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.logs import write_conversations

ASKED = ["thirsty", "hungry", "hot", "cold", "hmm"]
SAID = ["tea", "juice", "soup", "salad", "okay"]
PARTS = {"import": "import", "fit_critic": "fit-critic", "score": "score"}
TURNS_A_CONVERSATION = (3, 9)  # at least and at most
RECIPE = [
    *("probe", "trainer=cpu", "callbacks.progress=null", f"model.scratch.vocabulary=[{','.join(ASKED + SAID)}]"),
    *("model.scratch.hidden_size=64", "model.scratch.layers=2", "model.scratch.max_length=128"),
    *("critic.epochs=1", "critic.batch_conversations=64"),
]


def conversations(turns: int, seed: int) -> Iterator[Conversation]:
    """Conversations of so many turns together, won when tea was offered to the thirsty more often than not."""
    chance = random.Random(seed)
    left, number = turns, 0
    while left:
        count = min(left, chance.randint(*TURNS_A_CONVERSATION))
        exchanges = [(chance.choice(ASKED), chance.choice(SAID)) for _ in range(count)]
        met = sum((asked == "thirsty") == (said == "tea") for asked, said in exchanges)
        won = float(chance.random() < met / count)
        made = [
            Turn(f"hmm {asked}", f"okay {said}", reward=won if place == count - 1 else 0.0)
            for place, (asked, said) in enumerate(exchanges)
        ]
        yield Conversation(str(number), tuple(made), outcome=won)
        left, number = left - count, number + 1


@dataclass(frozen=True)
class Measured:
    """One process: seconds from start to end, and the most memory the system counted for it."""

    seconds: float
    peak_memory_bytes: int


def measure(words: Sequence[str], log: Path) -> Measured:
    """Runs ``iterppo WORDS``.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    started = time.perf_counter()
    with open(log, "wb") as said:
        command = [sys.executable, "-m", "lightning_iterppo.cli", *words]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"iterppo {words[0]} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return Measured(seconds, usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024)


def measure_size(turns: int, seed: int, place: Path) -> dict[str, Any]:
    """All three commands on logs of so many turns."""
    raw, logs, critic = place / "raw.jsonl", place / "logs.jsonl", place / "critic"
    write_conversations(raw, conversations(turns, seed))
    brought = measure(["import", "iterppo", str(raw), "-o", str(logs), "--json"], place / "import.txt")
    fit = measure(
        ["fit-critic", *RECIPE, f"seed={seed}", "--data", str(logs), "-o", str(critic), "--json"], place / "fit.txt"
    )
    scores = place / "scores.jsonl"
    score = measure(["score", str(critic), str(logs), "-o", str(scores), "--json"], place / "score.txt")
    with open(logs, "rb") as file:
        count = sum(1 for _ in file)
    with open(scores, "rb") as file:
        if sum(1 for _ in file) != turns:
            raise RuntimeError(f"{turns} turns were to be scored, but {scores} has another number of lines")
    return {
        "turns": turns,
        "conversations": count,
        "log_bytes": logs.stat().st_size,
        "import": asdict(brought),
        "fit_critic": asdict(fit),
        "score": asdict(score),
    }


def table(sizes: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line a size."""
    names = [f"{word}: peak, MB | seconds" for word in PARTS.values()]
    lines = [f"| turns | conversations | {' | '.join(names)} |", "| ---: " * (2 + 2 * len(names)) + "|"]
    for size in sizes:
        cells = [f"{size['turns']:,}", f"{size['conversations']:,}"]
        for part in PARTS:
            cells += [f"{size[part]['peak_memory_bytes'] / 1e6:.0f}", f"{size[part]['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(sizes: Sequence[dict[str, Any]], part: str) -> float:
    """How much more the largest peak is than the smallest: 0.1 is ten per cent."""
    peaks = [size[part]["peak_memory_bytes"] for size in sizes]
    return float(max(peaks) / min(peaks) - 1)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    arguments = parser.parse_args()
    sizes = []
    for turns in arguments.turns:
        with tempfile.TemporaryDirectory() as directory:
            sizes.append(measure_size(turns, arguments.seed, Path(directory)))
        print(json.dumps(sizes[-1]), flush=True)
    print(table(sizes))
    spreads = {part: spread(sizes, part) for part in PARTS}
    print("largest peak over smallest:", *(f"{word} +{spreads[part]:.1%}" for part, word in PARTS.items()))
    if not arguments.trial:
        content = {
            "seed": arguments.seed,
            "recipe": RECIPE,
            "sizes": sizes,
            "spread": spreads,
        }
        save("critic_memory", content)


if __name__ == "__main__":
    main()
