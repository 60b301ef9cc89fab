"""Keeps finished runs as results of the quickstart, and writes the two tables of them.

``python benchmarks/quickstart/record.py RUN…`` copies of every run its ``summary.json`` and ``recipe.yaml`` to
``benchmarks/results/quickstart/RECIPE-seed-SEED/`` (``RECIPE-ADAPTATION-seed-SEED`` where ``model/adaptation`` is not
the recipe's own), writes twenty of its conversations there to be read (``conversations.md``) and when, where and by
which command it was made (``run.json``). Without a RUN it only writes the tables again, from the results that are
there: the README's, of the recipes as they are, and that of ``docs/recipes.md``, of one seed with every adaptation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_iterppo.callbacks.conversation_logger import as_markdown
from lightning_iterppo.composition import available_recipes, compose, load_recipe
from lightning_iterppo.config import Recipe
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import IterPPOError, RunDirectoryError
from lightning_iterppo.files import replace_directory, write_json_atomically, write_text_atomically
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.summary import Rate, Summary

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import filled

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quickstart"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "recipes.md"
AFTER, BEFORE = 20, 5  # conversations to read
NONE = "–"
NO_RUNS = "No run is recorded yet: `python benchmarks/quickstart/record.py RUN…` records finished runs and writes this."
ADAPTATIONS = ("lora", "lora-top", "dora", "full")
ADAPTED_SEED = 1
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
ADAPTED_COLUMNS = (
    "`model/adaptation`",
    "outcome rate before (95 % interval)",
    "after (95 % interval)",
    "KL to π_k, nats a response",
    "training, minutes",
    "peak memory, GB",
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
    config = load_recipe(directory.recipe)
    facts = {
        "date": made.date().isoformat(),
        "command": command(config),
        "machine": summary.machine,
        "adaptation": adaptation(config),
    }
    other = other_adaptation(config)
    target = results / "-".join([summary.recipe, *([other] if other else []), "seed", str(summary.seed)])
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


def adaptation(config: Recipe) -> str | None:
    """The word of ``model/adaptation`` that gives a recipe's values; None where no word does."""
    if not _is_of_the_package(config):
        return None
    words = (word for word in ADAPTATIONS if config.model.adaptation == _with(config.name, word).model.adaptation)
    return next(words, None)


def other_adaptation(config: Recipe) -> str | None:
    """The same word where it is not the recipe's own; None where it is."""
    word = adaptation(config)
    return None if word is None or config.model.adaptation == compose(config.name).model.adaptation else word


def _is_of_the_package(config: Recipe) -> bool:
    return config.name in [info.name for info in available_recipes()]


def _with(recipe: str, word: str) -> Recipe:
    return compose(recipe, [f"model/adaptation={word}"])


def command(config: Recipe) -> str:
    """The command that makes such a run: the recipe's name, and every value that differs from it."""
    if not _is_of_the_package(config):
        return "iterppo train recipe.yaml"
    other = other_adaptation(config)
    own, package = _flat(asdict(config)), _flat(asdict(_with(config.name, other) if other else compose(config.name)))
    changed = [f"{key}={_yaml(value)}" for key, value in own.items() if key not in package or value != package[key]]
    # An entry that was left out: a null in its place was listed above.
    gone = [key for key in package if not any(key == each or key.startswith(f"{each}.") for each in own)]
    changed += sorted({f"~{'.'.join(key.split('.')[:2])}" for key in gone})
    if f"seed={config.seed}" not in changed:
        changed.insert(0, f"seed={config.seed}")
    return " ".join(["iterppo train", config.name, *([f"model/adaptation={other}"] if other else []), *changed])


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
    """The Markdown between the README's markers: the recipes as they are."""
    kept = [run for run in _kept(results) if run.name == f"{run.summary.recipe}-seed-{run.summary.seed}"]
    if not kept:
        return NO_RUNS
    kept.sort(key=lambda run: (run.summary.recipe, run.summary.seed))
    return _markdown(COLUMNS, [row(run.summary) for run in kept], kept)


def adaptations(results: Path) -> str:
    """The Markdown between the markers of ``docs/recipes.md``: one seed with every adaptation, the cheapest first."""
    kept = [run for run in _kept(results) if run.facts["adaptation"] and run.summary.seed == ADAPTED_SEED]
    if not kept:
        return NO_RUNS
    kept.sort(key=lambda run: run.summary.seconds)
    return _markdown(ADAPTED_COLUMNS, [adapted_row(run) for run in kept], kept)


@dataclass(frozen=True)
class Kept:
    """One run that is kept: its directory's name, what it found out, and when, where and how it was made."""

    name: str
    summary: Summary
    facts: dict[str, Any]


def _kept(results: Path) -> list[Kept]:
    found = []
    for path in results.glob("*/summary.json"):
        facts = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        found.append(Kept(path.parent.name, RunDirectory(path.parent).read_summary(), facts))
    return found


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[Kept]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    made: dict[str, list[str]] = {}
    for run in kept:
        made.setdefault(f"{run.facts['date']}, {_machine(run.facts['machine'])}", []).append(
            f"`{run.facts['command']}`"
        )
    return "\n".join([*lines, "", *(f"{', '.join(commands)}: {where}." for where, commands in made.items())])


def row(summary: Summary) -> list[str]:
    """One run's cells."""
    critics = [iteration.critic for iteration in summary.iterations]
    before, after = summary.before, summary.after
    ratio = NONE if not before or not after or not before.outcome_rate else after.outcome_rate / before.outcome_rate
    unseen = NONE
    if summary.before_held_out and summary.after_held_out:
        unseen = f"{_percent(summary.before_held_out.outcome_rate)} → {_percent(summary.after_held_out.outcome_rate)}"
    return [
        summary.recipe,
        str(summary.seed),
        _rate(before),
        _rate(after),
        ratio if isinstance(ratio, str) else f"{ratio:.2f}",
        unseen,
        f"{summary.seconds / 60:.1f}",
        _memory(summary),
        ", ".join(_figure(critic.get("auroc")) for critic in critics) or NONE,
        ", ".join(f"{_figure(critic.get('brier'))} ({_figure(critic.get('brier_constant'))})" for critic in critics)
        or NONE,
    ]


def adapted_row(run: Kept) -> list[str]:
    """One run's cells in the table of adaptations."""
    summary = run.summary
    divergences = [iteration.policy.get("kl_old") for iteration in summary.iterations]
    return [
        f"`{run.facts['adaptation']}`",
        _rate(summary.before),
        _rate(summary.after),
        ", ".join(_figure(each) for each in divergences) or NONE,
        f"{summary.seconds / 60:.1f}",
        _memory(summary),
    ]


def _memory(summary: Summary) -> str:
    return NONE if summary.peak_memory_bytes is None else f"{summary.peak_memory_bytes / 1e9:.1f}"


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
    parser = argparse.ArgumentParser(description="Keeps finished runs as results and writes the tables.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories that `iterppo train` wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--readme", type=Path, default=README, help="the file with the table of recipes")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file with the table of adaptations")
    arguments = parser.parse_args(argv)
    try:
        for run in arguments.runs:
            print(f"{run} is kept in {record(run, arguments.results)}")
        tables = {
            arguments.readme: ("quickstart-table", table(arguments.results)),
            arguments.page: ("adaptations", adaptations(arguments.results)),
        }
        texts = {page: filled(page.read_text(encoding="utf-8"), *part, str(page)) for page, part in tables.items()}
        for page, text in texts.items():
            write_text_atomically(page, text)
    except (IterPPOError, OSError, ValueError) as error:
        print(f"record.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
