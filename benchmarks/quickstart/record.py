"""Keeps finished runs as results of the quickstart, and writes the README's table of them.

``python benchmarks/quickstart/record.py RUN…`` copies of every run its ``summary.json`` and ``recipe.yaml`` to
``benchmarks/results/quickstart/RECIPE-seed-SEED/``, writes twenty of its conversations there to be read
(``conversations.md``) and when, where and by which command it was made (``run.json``). Without a RUN it only writes the
table again, from the results that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_iterppo.callbacks.conversation_logger import as_markdown
from lightning_iterppo.composition import available_recipes, compose, load_recipe
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import IterPPOError, RunDirectoryError
from lightning_iterppo.files import replace_directory, write_json_atomically, write_text_atomically
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.summary import Rate, Summary

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quickstart"
README = ROOT / "README.md"
AFTER, BEFORE = 20, 5  # conversations to read
NONE = "–"
NO_RUNS = "No run is recorded yet: `python benchmarks/quickstart/record.py RUN…` records finished runs and writes this."
COLUMNS = (
    "recipe",
    "seed",
    "outcome rate before (95 % interval)",
    "after (95 % interval)",
    "ratio",
    "with products never trained on",
    "training, minutes",
    "peak memory, GB",
    "Q in each iteration: held-out AUROC",
    "Brier score (of a constant)",
)


# -- one run -------------------------------------------------------------------------------------------------------


def record(run: Path, results: Path) -> Path:
    """Copies what is kept of a run.

    Raises:
        RunDirectoryError: it is no run, it did not finish, or it measured no outcome rates.
    """
    directory = RunDirectory.open(run)
    summary = directory.read_summary()
    if summary.status != "finished":
        raise RunDirectoryError(f"{run} is {summary.status}, not finished: `iterppo train --resume {run}` goes on")
    if summary.before is None or summary.after is None:
        raise RunDirectoryError(f"{run} measured no outcome rate: loop.evaluation_conversations was 0")
    made = datetime.fromtimestamp(directory.summary.stat().st_mtime, tz=timezone.utc)
    facts = {"date": made.date().isoformat(), "command": command(directory.recipe), "machine": summary.machine}
    target = results / f"{summary.recipe}-seed-{summary.seed}"
    with replace_directory(target) as place:
        write_text_atomically(place / "summary.json", directory.summary.read_text(encoding="utf-8"))
        write_text_atomically(place / "recipe.yaml", directory.recipe.read_text(encoding="utf-8"))
        write_text_atomically(place / "conversations.md", conversations_to_read(directory))
        write_json_atomically(place / "run.json", facts)
    return target


def conversations_to_read(run: RunDirectory) -> str:
    """The first conversations after training, not chosen, and the first of the same customers before it."""
    after = read_conversations(run.conversations("after"))[:AFTER]
    met = {conversation.seed: conversation for conversation in read_conversations(run.conversations("before"))}
    before = [met[conversation.seed] for conversation in after if conversation.seed in met][:BEFORE]
    return (
        as_markdown(after, f"The first {len(after)} conversations after training")
        + "\n"
        + as_markdown(before, f"The first {len(before)} of the same customers before training")
    )


def command(recipe: Path) -> str:
    """The command that makes such a run: the recipe's name, and every value that differs from it."""
    config = load_recipe(recipe)
    if config.name not in [info.name for info in available_recipes()]:
        return "iterppo train recipe.yaml"
    own, package = _flat(asdict(config)), _flat(asdict(compose(config.name)))
    changed = [f"{key}={_yaml(value)}" for key, value in own.items() if key not in package or value != package[key]]
    # An entry that was left out: a null in its place was listed above.
    gone = [key for key in package if not any(key == each or key.startswith(f"{each}.") for each in own)]
    changed += sorted({f"~{'.'.join(key.split('.')[:2])}" for key in gone})
    if f"seed={config.seed}" not in changed:
        changed.insert(0, f"seed={config.seed}")
    return " ".join(["iterppo train", config.name, *changed])


def _flat(section: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            found.update(_flat(value, f"{above}{key}."))
        else:
            found[f"{above}{key}"] = value
    return found


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_yaml(each) for each in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


# -- the table -----------------------------------------------------------------------------------------------------


def table(results: Path) -> str:
    """The Markdown between the README's markers."""
    kept = [(path.parent, RunDirectory(path.parent).read_summary()) for path in results.glob("*/summary.json")]
    if not kept:
        return NO_RUNS
    kept.sort(key=lambda item: (item[1].recipe, item[1].seed))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(row(summary)) + " |" for _, summary in kept]
    made: dict[str, list[str]] = {}
    for path, _ in kept:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        made.setdefault(f"{facts['date']}, {_machine(facts['machine'])}", []).append(f"`{facts['command']}`")
    lines += ["", *(f"{', '.join(commands)}: {where}." for where, commands in made.items())]
    return "\n".join(lines)


def row(summary: Summary) -> list[str]:
    """One run's cells."""
    critics = [iteration.critic for iteration in summary.iterations]
    before, after = summary.before, summary.after
    ratio = NONE if not before or not after or not before.outcome_rate else after.outcome_rate / before.outcome_rate
    unseen = NONE
    if summary.before_held_out and summary.after_held_out:
        unseen = f"{_percent(summary.before_held_out.outcome_rate)} → {_percent(summary.after_held_out.outcome_rate)}"
    peak = summary.peak_memory_bytes
    return [
        summary.recipe,
        str(summary.seed),
        _rate(before),
        _rate(after),
        ratio if isinstance(ratio, str) else f"{ratio:.2f}",
        unseen,
        f"{summary.seconds / 60:.1f}",
        NONE if peak is None else f"{peak / 1e9:.1f}",
        ", ".join(_figure(critic.get("auroc")) for critic in critics) or NONE,
        ", ".join(f"{_figure(critic.get('brier'))} ({_figure(critic.get('brier_constant'))})" for critic in critics)
        or NONE,
    ]


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return NONE
    low, high = rate.ci95
    return f"{_percent(rate.outcome_rate)} ({100 * low:.1f} to {100 * high:.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _count(number: int | None, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _machine(machine: dict[str, Any]) -> str:
    accelerator = machine.get("accelerator") or "no accelerator"
    cores, threads = _count(machine.get("cores"), "core"), _count(machine.get("threads"), "thread")
    return (
        f"{machine.get('processor')}, {cores}, {threads}, {accelerator}, {machine.get('system')}, "
        f"Python {machine.get('python')}, torch {machine.get('torch')}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Keeps finished runs as results and writes the README's table.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories that `iterppo train` wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--readme", type=Path, default=README, help="the file with the table")
    arguments = parser.parse_args(argv)
    try:
        for run in arguments.runs:
            print(f"{run} is kept in {record(run, arguments.results)}")
        fill(arguments.readme, {"quickstart-table": table(arguments.results)})
    except (IterPPOError, OSError, ValueError) as error:
        print(f"record.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
