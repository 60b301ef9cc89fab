"""Tables and plots of what ``run.py`` wrote.

``python benchmarks/learning/report.py`` prints the tables as Markdown, ``--plots`` also draws the learning curves into
``docs/images/``. Needs ``pip install -e '.[bench]'``.

Interquartile means over seeds with 95 % intervals by stratified bootstrap (Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice"), as the rliable package computes them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rliable import library, metrics
from run import OURS, REGIMES

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "benchmarks" / "results" / "learning" / "runs.jsonl"
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
    """Runs of Iterative PPO by regime and task, then by overrides; only where there are some with overrides."""
    found: Runs = defaultdict(lambda: defaultdict(list))
    for result in sorted(results, key=lambda r: int(r["seed"])):
        if result["method"] == OURS:
            found[result["regime"], result["task"]][" ".join(result["overrides"]) or AS_IT_IS].append(result)
    return {place: words for place, words in found.items() if len(words) > 1}


def variants_table(words: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row a variant: what it does to the outcome and to the critic's held-out figures, means over iterations."""
    lines = ["| changed | final outcome, interquartile mean (95 %) | explained variance | Brier score | runs |"]
    lines.append("| --- | --- | --- | --- | --- |")
    points, intervals = interquartile({name: np.array([[r["after"]] for r in runs]) for name, runs in words.items()})
    for name in sorted(words, key=lambda name: (name != AS_IT_IS, name)):
        low, high = intervals[name][:, 0]
        explained, brier = (_mean_figure(words[name], key) for key in ("explained_variance", "brier"))
        lines.append(
            f"| {name} | {points[name][0]:.3f} ({low:.3f} to {high:.3f}) | {explained} | {brier} | {len(words[name])} |"
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
    lines = ["| method | final outcome, interquartile mean (95 %) | conversations to the best baseline's | runs |"]
    lines.append("| --- | --- | --- | --- |")
    for method in sorted(points, key=lambda name: -float(points[name][0])):
        low, high = intervals[method][:, 0]
        reached = [place for place, value in zip(places[method], paths[method], strict=True) if value >= bar]
        when = f"{reached[0]}" if reached and places[method][-1] else "–"
        lines.append(
            f"| {method} | {points[method][0]:.3f} ({low:.3f} to {high:.3f}) | {when} | {len(final[method])} |"
        )
    before = [run["before"] for runs in methods.values() for run in runs]
    lines.append(f"\nBefore training: {np.mean(before):.3f} in the mean.")
    return lines


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


def main() -> None:
    """Prints, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", action="store_true")
    arguments = parser.parse_args()
    everything = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    results = grouped(everything)
    for regime, task in sorted(results):
        print(f"\n### {task}, {regime} deployments\n")
        print("\n".join(table(results[regime, task])))
    for (regime, task), words in sorted(variants(everything).items()):
        print(f"\n### Iterative PPO with something changed: {task}, {regime} deployments\n")
        print("\n".join(variants_table(words)))
    if arguments.plots:
        for regime in sorted({regime for regime, _ in results}):
            plot(results, regime)


if __name__ == "__main__":
    main()
