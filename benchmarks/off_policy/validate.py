"""Do the off-policy estimates and their intervals hold? Against values that are enumerated, or measured.

``python benchmarks/off_policy/validate.py --repetitions 200`` estimates policies on random conversations that `theory`
enumerates, from logs of other policies, further and further from them, and counts how often the 95 % intervals hold the
truth. ``--levels 0 3`` does some of the distances only and keeps what is recorded of the others. ``--task shop`` does
the same with a language model in the templated shop: a run for each of ``--seeds``, whose policies' values are measured
with many conversations, and an equal share of the repetitions, each with logs of its own, for each run. Results go to
``benchmarks/results/off_policy/``; ``--write`` only puts the tables of what is recorded there into
``docs/off-policy.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from lightning_iterppo.evaluation import fitted_q as fqe
from lightning_iterppo.evaluation.off_policy import (
    OverlapLimits,
    doubly_robust,
    overlap_of,
    per_decision,
    resamples,
    studentised,
)
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.machine import describe_machine

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from exact import make_case  # noqa: E402
from pages import fill  # noqa: E402
from shop import repetitions  # noqa: E402

RESULTS = HERE.parent / "results" / "off_policy"
PAGE = HERE.parents[1] / "docs" / "off-policy.md"
#: The improvement's KL coefficient; None is the policy that made the logs. Lower is further away.
LEVELS: Final = (None, 1.0, 0.3, 0.15, 0.1, 0.05, 0.02)
CONVERSATIONS, SAMPLES, FITS = 500, 1000, 100
NAMES: Final = {"fqe": "FQE", "pdwis": "PDWIS", "doubly_robust": "DR"}
FORMS: Final = ("chosen", "percentile", "normal")


def one(number: int, beta: float | None) -> dict[str, Any]:
    """One repetition: for each estimator its error and whether each form of interval holds the truth.

    Nothing is refused here, so that what a refusal spares is seen too; ``refused`` says whether it would have been.
    """
    case = make_case(number, beta, CONVERSATIONS)
    counts = resamples(len(case.logs), SAMPLES, number)
    prior = fqe.choose_prior(case.turns, gamma=1.0, seed=number)
    q, v = fqe.cross_fitted(case.turns, gamma=1.0, prior=prior, seed=number)
    found = {}
    robust = doubly_robust(case.logs, q, v)
    direct, sampled = fqe.fitted_q(case.turns, counts[:FITS], gamma=1.0, prior=prior, corrected=robust.value)
    forms = {"chosen": direct.ci95, "percentile": tuple(np.quantile(sampled, [0.025, 0.975])), "normal": None}
    found["fqe"] = _judged(direct.value, forms, case.truth)
    for name, estimator in (("pdwis", per_decision(case.logs)), ("doubly_robust", robust)):
        made = studentised(estimator, counts)
        half = 1.96 * float(estimator.errors(np.ones((1, len(case.logs))))[0])
        forms = {
            "chosen": made.ci95,
            "percentile": tuple(np.quantile(estimator.values(counts), [0.025, 0.975])),
            "normal": (made.value - half, made.value + half),
        }
        found[name] = _judged(made.value, forms, case.truth)
    overlap = overlap_of(case.logs)
    return {
        "kl": case.kl,
        "truth": case.truth,
        "logged": float(case.logs.rewards.sum(1).mean()),
        "effective_sample_size": overlap.effective_sample_size,
        "refused": bool(OverlapLimits().reasons(overlap)),
        **found,
    }


def _judged(value: float, forms: dict[str, Any], truth: float) -> dict[str, Any]:
    covers = {form: None if ends is None else bool(ends[0] <= truth <= ends[1]) for form, ends in forms.items()}
    return {"error": value - truth, "width": float(forms["chosen"][1] - forms["chosen"][0]), "covers": covers}


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Bias, root mean squared error, interval width and coverage of each estimator; None of nothing."""
    if not rows:
        return None
    found = {}
    for name in NAMES:
        errors = np.array([row[name]["error"] for row in rows])
        covers = {form: [row[name]["covers"][form] for row in rows] for form in FORMS}
        found[name] = {
            "bias": float(errors.mean()),
            "rmse": float(np.sqrt(np.square(errors).mean())),
            "width": float(np.mean([row[name]["width"] for row in rows])),
            "coverage": {form: None if None in each else float(np.mean(each)) for form, each in covers.items()},
        }
    return found


def level(beta: float | None, repetitions: int) -> dict[str, Any]:
    """All repetitions at one distance."""
    started = time.perf_counter()
    rows = [one(number, beta) for number in range(repetitions)]
    kept, refused = [r for r in rows if not r["refused"]], [r for r in rows if r["refused"]]
    return {
        "beta": beta,
        "repetitions": repetitions,
        "kl": float(np.mean([r["kl"] for r in rows])),
        "truth": float(np.mean([r["truth"] for r in rows])),
        "logged": float(np.mean([r["logged"] for r in rows])),
        "effective_sample_size": float(np.median([r["effective_sample_size"] for r in rows])),
        "estimated": len(kept),
        "of_estimated": summarised(kept),
        "of_refused": summarised(refused),
        "seconds": time.perf_counter() - started,
    }


def overall(levels: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Coverage of each estimator over everything that was estimated, by form of interval where it is known."""
    some = [each for each in levels if each["of_estimated"]]
    total = sum(each["estimated"] for each in some)
    found: dict[str, dict[str, float]] = {}
    for name in NAMES:
        found[name] = {}
        for form in FORMS:
            shares = [each["of_estimated"][name]["coverage"][form] for each in some]
            if total and None not in shares:
                found[name][form] = sum(s * e["estimated"] for s, e in zip(shares, some, strict=True)) / total
    return found


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    lines = [
        "| KL from the logs | ESS | estimated | " + " | ".join(f"{n} bias, RMSE, cover" for n in NAMES.values()) + " |",
        "| --- | --- | --- | " + " | ".join("---" for _ in NAMES) + " |",
    ]
    for each in record["levels"]:
        head = (
            f"| {each['kl']:.2f} | {each['effective_sample_size']:.0f} | {each['estimated']} of {each['repetitions']}"
        )
        lines.append(f"{head} | {' | '.join(_cells(each['of_estimated']))} |")
        if each["of_refused"]:
            lines.append(f"| | | *refused* | {' | '.join(f'*{cell}*' for cell in _cells(each['of_refused']))} |")
    said = ", ".join(f"{NAMES[name]} {100 * forms['chosen']:.1f} %" for name, forms in record["coverage"].items())
    other = ", ".join(f"{NAMES[name]} {100 * forms['percentile']:.1f} %" for name, forms in record["coverage"].items())
    lines += ["", f"Coverage of all that was estimated: {said}; with percentile intervals {other}."]
    return "\n".join(lines)


def _cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["–"] * len(NAMES)
    return [
        f"{f['bias']:+.3f}, {f['rmse']:.3f}, {100 * f['coverage']['chosen']:.0f} %" for f in (found[n] for n in NAMES)
    ]


def share_held(rows: list[dict[str, Any]], estimator: str) -> float:
    """How many of the intervals hold the truth."""
    ends = [row[estimator]["ci95"] for row in rows]
    return float(np.mean([low <= row["truth"] <= high for row, (low, high) in zip(rows, ends, strict=True)]))


def shop_table(record: dict[str, Any]) -> str:
    """The shop's record as a Markdown table: one line a policy, over the repetitions."""
    lines = [
        "| policy | ESS | estimated | truth | " + " | ".join(f"{n} bias, RMSE, cover" for n in NAMES.values()) + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in NAMES) + " |",
    ]
    for distance in sorted({row["iterations"] for row in record["rows"]}):
        rows = [row for row in record["rows"] if row["iterations"] == distance]
        kept = [row for row in rows if row["verdict"] == "estimated"]
        cells = []
        for name in NAMES:
            if not kept:
                cells.append("–")
                continue
            errors = [row[name]["value"] - row["truth"] for row in kept]
            rmse = float(np.sqrt(np.square(errors).mean()))
            cells.append(f"{float(np.mean(errors)):+.3f}, {rmse:.3f}, {100 * share_held(kept, name):.0f} %")
        truth = float(np.mean([row["truth"] for row in rows]))
        size = float(np.median([row["overlap"]["effective_sample_size"] for row in rows]))
        named = "that of the logs" if distance == 0 else f"{distance} iteration{'s' * (distance > 1)} on"
        lines.append(f"| {named} | {size:.0f} | {len(kept)} of {len(rows)} | {truth:.3f} | {' | '.join(cells)} |")
    estimated = [row for row in record["rows"] if row["verdict"] == "estimated"]
    said = ", ".join(f"{name} {100 * share_held(estimated, key):.1f} %" for key, name in NAMES.items())
    runs = len({row["seed"] for row in record["rows"]})
    logs = len({(row["seed"], row["logs"]) for row in record["rows"]})
    lines += [
        "",
        f"Coverage of all that was estimated: {said}. {runs} runs, {logs} logs, {record['machine']['processor']}.",
    ]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The tables of what is recorded, by their names on the page."""
    return {
        name: make(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        for name, make in (("exact", table), ("shop", shop_table))
        if (RESULTS / f"{name}.json").is_file()
    }


def measure_exact(arguments: argparse.Namespace) -> None:
    path = RESULTS / "exact.json"
    levels = dict.fromkeys(range(len(LEVELS)))
    if arguments.levels and path.is_file():
        levels = dict(enumerate(json.loads(path.read_text(encoding="utf-8"))["levels"]))
    for number in arguments.levels or range(len(LEVELS)):
        levels[number] = level(LEVELS[number], arguments.repetitions)
        print(f"level {number}: {levels[number]['estimated']} estimated, {levels[number]['seconds']:.0f} s", flush=True)
    found = [each for _, each in sorted(levels.items()) if each is not None]
    settings = {"conversations": CONVERSATIONS, "samples": SAMPLES, "fits": FITS, "turns": 3}
    settings |= {"limits": asdict(OverlapLimits())}
    record = {"settings": settings, "machine": describe_machine(), "levels": found, "coverage": overall(found)}
    write_json_atomically(path, record)
    print(table(record))


def measure_shop(arguments: argparse.Namespace) -> None:
    path = RESULTS / "shop.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    done = {row["seed"] for row in rows}
    for seed in arguments.seeds:
        if seed in done:
            continue
        rows += repetitions(seed, range(arguments.repetitions // len(arguments.seeds)))
        record = {"machine": describe_machine(), "rows": rows}
        write_json_atomically(path, record)
        print(shop_table(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["exact", "shop"], default="exact")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(1, 11)], help="of task shop: the runs'")
    parser.add_argument("--levels", type=int, nargs="+", choices=range(len(LEVELS)), help="of task exact: which")
    parser.add_argument("--write", action="store_true", help="only write the tables into the page")
    arguments = parser.parse_args()
    if arguments.write:
        fill(PAGE, tables())
    elif arguments.task == "exact":
        measure_exact(arguments)
    else:
        measure_shop(arguments)


if __name__ == "__main__":
    main()
