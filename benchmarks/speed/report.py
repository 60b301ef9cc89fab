"""The table of what the commands of this folder measured.

``python benchmarks/speed/report.py`` prints it as Markdown; ``--write`` puts it into ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill
from records import RESULTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
#: Goals of an update: times as fast as TRL, and share of its memory.
GOALS: Final = {
    ("lora", "ours"): (3.0, 0.35),
    ("lora", "ours, top 10 layers"): (6.0, 0.2),
    ("lora", "ours, top 4 layers"): (10.0, 0.15),
    ("full-float32", "ours, float32"): (2.0, 0.5),
    ("full", "ours, bf16-mixed and checkpointing"): (2.0, 0.5),
}


def read(name: str) -> dict[str, Any] | None:
    """A result, or None where it was not measured."""
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found


def verdict(reached: bool) -> str:
    """In a word."""
    return "reached" if reached else "**missed**"


def updates(name: str, title: str) -> list[str]:
    """One row a side of an update's comparison."""
    found = read(f"update-{name}")
    if found is None:
        return []
    rows = []
    for side, record in found["sides"].items():
        seconds = statistics.median(record["seconds"])
        memory = record["peak_memory_bytes"] / 1e9
        row = f"| {title}: {side} | {seconds:.1f} s, {memory:.2f} GB |"
        if side not in found["ratios"]:
            rows.append(f"{row} – | – | – |")
            continue
        (speed, low, high), share = found["ratios"][side]["speed"], found["ratios"][side]["memory"]
        goal = GOALS.get((name, side))
        aim = f"≥ {goal[0]:g} ×, ≤ {goal[1]:g} × | " if goal else "– | "
        word = verdict(speed >= goal[0] and share <= goal[1]) if goal else "–"
        rows.append(f"{row} {speed:.2f} × ({low:.2f} to {high:.2f}), {share:.2f} × memory | {aim}{word} |")
    return rows


def row(what: str, measured: str, times: str, goal: str, reached: bool) -> str:
    """A line of the table."""
    return f"| {what} | {measured} | {times} | {goal} | {verdict(reached)} |"


def spread(middle: float, low: float, high: float) -> str:
    """A ratio with the least and the most of the pairs."""
    return f"{middle:.2f} × ({low:.2f} to {high:.2f})"


def others() -> list[str]:
    """One row for every other measurement there is."""
    rows = []
    if limit := read("limit"):
        for top, found in limit["top_layers"].items():
            own = f"{statistics.median(found['update']['seconds']):.1f} s"
            times = found["ratio"]
            what = f"update over the passes it needs, top {top} layers"
            rows.append(row(what, own, spread(*times), "≤ 1.3 ×", times[0] <= 1.3))
    if critic := read("critic"):
        own, times = critic["sides"]["ours"], critic["ratio"]
        rate = f"{own['others'][0]['turns'] / statistics.median(own['seconds']):.1f} turns/s"
        rows.append(row("critic fit over transformers' Trainer", rate, spread(*times), "≥ 2 ×", times[0] >= 2))
    if padding := read("padding"):
        own = padding["sides"]["trimmed"]
        shown = f"{statistics.median(own['seconds']):.1f} s, {own['peak_memory_bytes'] / 1e9:.2f} GB"
        times = f"{spread(*padding['ratio'])}, {padding['memory']:.2f} × memory"
        rows.append(f"| imitating the shop's logs, short rows apart over padded | {shown} | {times} | – | – |")
    collect = read("collect") or {}
    for part, title, goal in (
        ("collection", "model.generate of the same policy", 3.0),
        ("merged", "model.generate without an adapter", 3.0),
        ("grpo", "TRL's GRPO rollout", 1.0),
    ):
        if part in collect:
            times = [collect[part]["times_as_fast"][key] for key in ("median", "least", "most")]
            rate = f"{next(iter(collect[part]['conversations_per_second'].values())):.2f} conversations/s"
            what = f"collection over {title}, {collect[part]['dtype']}"
            rows.append(row(what, rate, spread(*times), f"≥ {goal:g} ×", times[0] >= goal))
    if cost := collect.get("cost"):
        own = cost["lightning-iterppo"]
        later = zip(cost["turns"][1:], own["seconds"][1:], own["times_the_first"][1:], strict=True)
        for turn, seconds, times in later:
            what = f"a turn at turn {turn} over turn {cost['turns'][0]}"
            rows.append(row(what, f"{seconds:.2f} s", f"{times:.2f} ×", "≤ 1.3 ×", times <= 1.3))
    if memory := read("critic_memory"):
        for part, title in (("import", "importing"), ("fit_critic", "a critic fit"), ("score", "scoring")):
            peaks = ((size["turns"], size[part]["peak_memory_bytes"]) for size in memory["sizes"])
            shown = ", ".join(f"{turns:,}: {peak / 1e6:.0f} MB" for turns, peak in peaks)
            more = memory["spread"][part]
            rows.append(row(f"memory of {title}, by turns", shown, f"+{more:.1%}", "≤ 10 %", more <= 0.1))
    if overhead := read("overhead"):
        share = overhead["overhead"]
        rows.append(row("loop and Lightning over tensor work", "–", f"{share:.1%}", "≤ 5 %", share <= 0.05))
    return rows


def origins() -> list[str]:
    """When, where and how each was measured."""
    lines = []
    for file in sorted(RESULTS.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        for part in [record] if "command" in record else record.values():
            machine = part["machine"]
            lines.append(
                f"- `{part['command']}`: {part['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "
                f"torch {machine['torch']}"
            )
    return list(dict.fromkeys(lines))  # one command may have measured several parts


def table() -> str:
    """All of it."""
    rows = [
        *updates("lora", "LoRA r 16"),
        *updates("full", "full fine-tuning"),
        *updates("full-float32", "full fine-tuning"),
        *updates("settings", "TRL's settings"),
        *others(),
    ]
    head = ["| what | measured | ratio | goal | |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, "", *origins()]) if rows else "Not measured yet."


def main() -> None:
    """Prints or writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.write:
        fill(PAGE, {"table": text})


if __name__ == "__main__":
    main()
