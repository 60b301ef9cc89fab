"""Tables and plots of what ``run.py`` wrote.

``python benchmarks/learning/report.py`` prints the tables as Markdown; ``--write`` puts them into ``docs/learning.md``
and draws the learning curves into ``docs/images/``. Needs ``pip install -e '.[bench]'``.

Interquartile means over seeds with 95 % intervals by stratified bootstrap (Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice"), as the rliable package computes them.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rliable import library, metrics
from run import OURS, PASSES, RATES, REGIMES, RESULTS, read

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "learning.md"
IMAGES = ROOT / "docs" / "images"
REPETITIONS: Final = 2_000
AS_IT_IS: Final = "nothing"

Scores = dict[str, NDArray[np.float64]]


Runs = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]


def grouped(results: list[dict[str, Any]]) -> Runs:
    """Runs without more overrides, by regime and task, then by method."""
    found: Runs = defaultdict(lambda: defaultdict(list))
    for result in sorted(results, key=lambda r: int(r["seed"])):
        if not result["overrides"]:
            found[result["regime"], result["task"]][result["method"]].append(result)
    return found


def variants(results: list[dict[str, Any]]) -> Runs:
    """Runs of Iterative PPO by regime and task, then by overrides; only where some have them."""
    found: Runs = defaultdict(lambda: defaultdict(list))
    for result in sorted(results, key=lambda r: int(r["seed"])):
        if result["method"] == OURS:
            found[result["regime"], result["task"]][" ".join(result["overrides"]) or AS_IT_IS].append(result)
    return {place: words for place, words in found.items() if len(words) > 1}


def variants_table(words: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row a variant: what it does to the outcome and to the critic's held-out figures, means over iterations.

    Seeds start from other warm starts, so that a variant is compared with what nothing changed reached on its own.
    """
    lines = [
        "| changed | final outcome, interquartile mean (95 %) | more than nothing changed, seed by seed | "
        "explained variance | Brier score | runs |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    before = {run["seed"]: run["after"] for run in words[AS_IT_IS]}
    points, intervals = interquartile({name: np.array([[r["after"]] for r in runs]) for name, runs in words.items()})
    for name in sorted(words, key=lambda name: (name != AS_IT_IS, name)):
        low, high = intervals[name][:, 0]
        explained, brier = (_mean_figure(words[name], key) for key in ("explained_variance", "brier"))
        more = [run["after"] - before[run["seed"]] for run in words[name]]
        gained = "–" if name == AS_IT_IS else f"{np.mean(more):+.3f} ({min(more):+.3f} to {max(more):+.3f})"
        lines.append(
            f"| {name} | {points[name][0]:.3f} ({low:.3f} to {high:.3f}) | {gained} | {explained} | {brier} | "
            f"{len(words[name])} |"
        )
    return lines


def _mean_figure(runs: list[dict[str, Any]], key: str) -> str:
    found = [figures[key] for run in runs for figures in run["critic"] if figures.get(key) is not None]
    return f"{np.mean(found):.3f}" if found else "–"


def interquartile(scores: Scores) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Interquartile means of (runs, points) scores at every point, and their intervals (2, points)."""

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([metrics.aggregate_iqm(values[:, [point]]) for point in range(values.shape[1])])

    random = np.random.RandomState(0)
    points, intervals = library.get_interval_estimates(scores, means, reps=REPETITIONS, random_state=random)
    return points, intervals


def curves(methods: dict[str, list[dict[str, Any]]]) -> tuple[Scores, dict[str, list[int]]]:
    """Outcomes of (runs, points), and after how many conversations each point is; the last one is the evaluation."""
    scores, places = {}, {}
    for method, runs in methods.items():
        scores[method] = np.array([[*run["curve"], run["after"]] for run in runs])
        count = scores[method].shape[1] - 1
        each = REGIMES[runs[0]["regime"]][1] if count else 0
        places[method] = [each * point for point in range(count + 1)]
    return scores, places


def table(methods: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row a method, the best first."""
    final = {method: np.array([[run["after"]] for run in runs]) for method, runs in methods.items()}
    points, intervals = interquartile(final)
    baselines = [method for method in points if method != OURS]
    bar = max(float(points[method][0]) for method in baselines) if baselines else float("inf")
    along, places = curves(methods)
    paths = {method: interquartile({method: along[method]})[0][method] for method in methods}
    columns = (
        "method",
        "final outcome, interquartile mean (95 %)",
        "behind, seed by seed",
        "to the best other's",
        "runs",
    )
    lines = [f"| {' | '.join(columns)} |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for method in sorted(points, key=lambda name: -float(points[name][0])):
        low, high = intervals[method][:, 0]
        reached = [place for place, value in zip(places[method], paths[method], strict=True) if value >= bar]
        when = f"{reached[0]}" if reached and places[method][-1] else "–"
        score = f"{points[method][0]:.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {method} | {score} | {_behind(methods, method)} | {when} | {len(final[method])} |")
    before = [run["before"] for runs in methods.values() for run in runs]
    lines.append(f"\nBefore training: {np.mean(before):.3f} in the mean.")
    return lines


def _behind(methods: dict[str, list[dict[str, Any]]], method: str) -> str:
    """How much less than Iterative PPO a method reached from the same warm start: the mean, the least and the most."""
    ours = {run["seed"]: run["after"] for run in methods.get(OURS, [])}
    less = [ours[run["seed"]] - run["after"] for run in methods[method] if run["seed"] in ours]
    return f"{np.mean(less):+.3f} ({min(less):+.3f} to {max(less):+.3f})" if less and method != OURS else "–"


def plot(results: Runs, regime: str) -> None:
    """Learning curves of one regime, a panel a task."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "learning", "axes.grid": True, "grid.alpha": 0.3})
    tasks = [task for r, task in results if r == regime]
    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        scores, places = curves(results[regime, task])
        for number, method in enumerate(sorted(scores)):
            points, intervals = interquartile({method: scores[method]})
            color = f"C{number}"
            if places[method][-1] == 0:  # had no customer: one value
                panel.axhline(points[method][0], color=color, label=method, linestyle=":")
                continue
            panel.plot(places[method], points[method], color=color, label=method, lw=2.5 if method == OURS else 1.2)
            panel.fill_between(places[method], *intervals[method], color=color, alpha=0.12)
        panel.set(title=task, xlabel="conversations with the customer", ylabel="mean outcome")
    panels[0][0].legend(fontsize=8)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"learning-{regime}.svg", bbox_inches="tight", metadata={"Date": None})


def tuning_table(results: list[dict[str, Any]], regime: str) -> list[str]:
    """One row a method: the outcome with every setting that was tried, the best in bold."""
    settings = [(rate, passes) for rate in RATES for passes in PASSES[regime]]
    lines = ["| method | " + " | ".join(f"{rate:g}, {passes} passes" for rate, passes in settings) + " |"]
    lines.append("| --- |" + " --- |" * len(settings))
    found: dict[str, dict[tuple[float, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result["regime"] == regime:
            found[result["method"]][result["learning_rate"], result["passes"]].append(result["after"])
    for method, outcomes in found.items():
        means = {setting: float(np.mean(outcomes[setting])) for setting in settings}
        best = max(means, key=lambda setting: means[setting])
        cells = (f"**{means[s]:.3f}**" if s == best else f"{means[s]:.3f}" for s in settings)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def origin(results: list[dict[str, Any]]) -> str:
    """When and where runs were made, and how long they took."""
    dates = sorted({r["date"] for r in results})
    machines = ", ".join(sorted({r["processor"] for r in results}))
    middle = np.median([r["seconds"] for r in results])
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{len(results)} runs, {when}, {machines}, one thread each, {middle:.0f} s in the median."


def sections(runs: list[dict[str, Any]], tuning: list[dict[str, Any]]) -> dict[str, str]:
    """What the page has between its marks, by name."""
    found: dict[str, list[str]] = {}
    results = grouped(runs)
    for regime in REGIMES:
        places = [place for place in sorted(results) if place[0] == regime]
        lines = [line for place in places for line in (f"#### {place[1]}", "", *table(results[place]), "")]
        shown = [r for r in runs if r["regime"] == regime and not r["overrides"]]
        found[regime] = [*lines, origin(shown)] if shown else ["Not run yet."]
        tried = [r for r in tuning if r["regime"] == regime]
        found[f"tuning-{regime}"] = [*tuning_table(tuning, regime), "", origin(tried)] if tried else ["Not run yet."]
    changed = variants(runs)
    lines = [
        line
        for regime, task in sorted(changed)
        for line in (f"#### {task}, {regime} deployments", "", *variants_table(changed[regime, task]), "")
    ]
    varied = [r for r in runs if r["overrides"]]
    found["variants"] = [*lines, origin(varied)] if varied else ["Not run yet."]
    return {name: "\n".join(lines) for name, lines in found.items()}


def main() -> None:
    """Prints, or writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    runs = read(RESULTS / "runs.jsonl")
    parts = sections(runs, read(RESULTS / "tuning.jsonl"))
    for name, text in parts.items():
        print(f"\n### {name}\n\n{text}")
    if arguments.write:
        fill(PAGE, parts)
        results = grouped(runs)
        for regime in sorted({regime for regime, _ in results}):
            plot(results, regime)


if __name__ == "__main__":
    main()
