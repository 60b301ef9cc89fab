"""What is recorded of the learning benchmark: fair comparisons, and a page that says what was recorded."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learning"
PAGE = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
CHOSEN = json.loads((ROOT / "benchmarks" / "learning" / "chosen.json").read_text(encoding="utf-8"))
ROW = re.compile(
    r"\| (?P<name>[^|]+) \| (?P<mean>-?[\d.]+) \((?P<low>-?[\d.]+) to (?P<high>-?[\d.]+)\) \|.*\| (?P<runs>\d+) \|"
)


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


RUNS = read("runs.jsonl")


def interquartile_mean(values: list[float]) -> float:
    cut = len(values) // 4
    return fmean(sorted(values)[cut : len(values) - cut])


def marked(name: str) -> str:
    return PAGE.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]


def rows(text: str) -> dict[tuple[str, str], re.Match[str]]:
    """Rows of tables by the heading above and their first column."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("#### "):
            heading = line[5:]
        elif row := ROW.match(line):
            found[heading, row["name"]] = row
    return found


def test_every_method_ran_with_what_its_grid_chose_and_on_the_same_seeds() -> None:
    seeds = defaultdict(set)
    for run in RUNS:
        chosen = CHOSEN["chosen"][run["regime"]][run["method"]]
        if not run["overrides"]:
            assert (run["learning_rate"], run["passes"]) == (chosen["learning_rate"], chosen["passes"])
            seeds[run["regime"], run["task"], run["method"]].add(run["seed"])
        assert run["seed"] not in CHOSEN["seeds"]
    # Within a regime, whose methods are compared with each other; the two regimes are not.
    for regime in CHOSEN["chosen"]:
        of_regime = {place: frozenset(found) for place, found in seeds.items() if place[0] == regime}
        assert len(of_regime) == 24 and len(set(of_regime.values())) == 1


@pytest.mark.parametrize("regime", CHOSEN["chosen"])
def test_what_was_chosen_was_the_best_of_the_grid(regime: str) -> None:
    for method, chosen in CHOSEN["chosen"][regime].items():
        tried = [r for r in read("tuning.jsonl") if (r["regime"], r["method"]) == (regime, method)]
        assert len(tried) == 4 * len(CHOSEN["seeds"])
        assert chosen["after"] == pytest.approx(max(r["after"] for r in tried))


@pytest.mark.parametrize("regime", ["few", "many"])
def test_the_tables_say_what_was_recorded(regime: str) -> None:
    outcomes = defaultdict(list)
    for run in RUNS:
        if run["regime"] == regime and not run["overrides"]:
            outcomes[run["task"], run["method"]].append(run["after"])
    shown = rows(marked(regime))
    assert set(shown) == set(outcomes)
    for place, row in shown.items():
        assert float(row["mean"]) == pytest.approx(interquartile_mean(outcomes[place]), abs=6e-4)
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert int(row["runs"]) == len(outcomes[place])


def test_the_plots_are_there() -> None:
    for name in re.findall(r"images/(learning-\w+\.svg)", PAGE):
        assert (ROOT / "docs" / "images" / name).is_file()


def test_the_readme_says_the_same() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = rows(marked("few"))
    others = {"PPO": "trajectory-ppo", "GRPO": "grpo", "iterative": "iterative-ppo", "the": None}
    for line in readme.partition("| | shop | questions | haggling |")[2].splitlines()[2:6]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        method = others[cells[0].split()[0]]
        for task, cell in zip(("shop", "questions", "haggling"), cells[1:], strict=True):
            means = {name: float(row["mean"]) for (place, name), row in shown.items() if place == task}
            expected = means[method] if method else max(v for name, v in means.items() if name != "iterative-ppo")
            assert float(cell.split()[0]) == expected
