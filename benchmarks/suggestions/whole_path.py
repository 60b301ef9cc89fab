"""From a log with dispositions to a decision to deploy, by the command line, where the truth can be measured.

``python benchmarks/suggestions/whole_path.py --seeds 5``: a policy that was trained a little suggests to a simulated
salesperson (`salesperson.py`), who accepts, edits or rejects. What that leaves behind goes the way of a company's own
logs: outcomes arrive in a file of their own, a twentieth of them never; import, fit-critic, improve, estimate, promote.
The estimate is of conversations that nothing was trained on. Only then is the policy put before customers. Results go
to ``benchmarks/results/suggestions/whole-path.json``; ``--write`` only puts the table of what is recorded there into
``docs/suggestions.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from lightning_iterppo.cli import main as iterppo
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.machine import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "suggestions" / "whole-path.json"
PAGE = HERE.parents[1] / "docs" / "suggestions.md"
RECIPE = str(HERE / "recipe.yaml")
#: Conversations to learn from, to judge by, and to measure what a policy is really worth.
LEARNT, JUDGED, MEASURED = 2000, 2000, 4000
#: Every so-manieth outcome never arrives.
LOST: Final = 20


def command(*words: str | Path, codes: tuple[int, ...] = (0,)) -> Any:
    """Runs a command and gives what it prints as JSON.

    Raises:
        RuntimeError: its exit code is another.
    """
    shown = " ".join(str(word).replace(str(Path.cwd()) + "/", "") for word in words)
    print(f"iterppo {shown}", file=sys.stderr, flush=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = iterppo([*map(str, words), "--json"])
    if code not in codes:
        raise RuntimeError(f"iterppo {shown}: exit code {code}")
    return json.loads(printed.getvalue())


def part_with_outcomes(collected: Path, logs: Path, outcomes: Path) -> None:
    """What a company has on the day: conversations without an outcome, and later the outcomes of most of them."""
    records = [json.loads(line) for line in collected.read_text(encoding="utf-8").splitlines()]
    with outcomes.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "outcome"])
        writer.writerows([r["id"], r["outcome"]] for i, r in enumerate(records) if i % LOST)
    for record in records:
        record["outcome"] = None
        for turn in record["turns"]:
            turn["reward"] = 0.0
    logs.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def path(seed: int, place: Path) -> dict[str, Any]:
    """The whole path once."""
    recipe = (RECIPE, f"seed={seed}")
    deployed, improved = place / "deployed", place / "improved"
    command("train", *recipe, "-o", deployed)
    imported = {}
    for number, (name, count) in enumerate({"learn": LEARNT, "judge": JUDGED}.items()):
        # Other customers than the run has met, and others than the other file's.
        others = (RECIPE, f"seed={seed + 100 * (number + 1)}")
        raw, logs, outcomes = (place / f"{name}-{kind}" for kind in ("raw.jsonl", "logs.jsonl", "outcomes.csv"))
        command("collect", *others, "--policy", deployed, "-n", str(count), "-o", raw)
        part_with_outcomes(raw, logs, outcomes)
        imported[name] = command("import", "iterppo", logs, "--outcomes", outcomes, "-o", place / f"{name}.jsonl")
    learn, judge = place / "learn.jsonl", place / "judge.jsonl"
    critic = command("fit-critic", *recipe, "--data", learn, "--policy", deployed, "-o", place / "critic")
    command(*("improve", *recipe, "--critic", place / "critic", "--data", learn, "--policy", deployed, "-o", improved))
    estimated = command("estimate", *recipe, "--policy", improved, "--data", judge)
    # The deployed policy is the measure of the text, too: the run itself kept none.
    policies = ("--current", deployed, "--reference", deployed)
    promoted = command("promote", improved, *policies, "--data", judge, codes=(0, 3))
    truth = {
        name: command("evaluate", *recipe, "--policy", policy, "-n", str(MEASURED))
        for name, policy in (("deployed", deployed), ("improved", improved))
    }
    found = {
        "seed": seed,
        "imported": imported["judge"],
        "critic": critic,
        "estimate": estimated,
        "promotion": promoted,
        "truth": truth,
    }
    kept: dict[str, Any] = json.loads(json.dumps(found).replace(f"{place}/", ""))  # files that are gone afterwards
    return kept


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| seed | accepted, edited, rejected | logged | estimated (95 %) | decision | guards | really before → after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in record["runs"]:
        shares = run["imported"]["dispositions"]["shares"]
        dr = run["estimate"]["doubly_robust"]
        told, better = "cannot tell", run["promotion"]["probability_better"]
        if dr["value"] is not None:
            told = f"{dr['value']:.3f} ({dr['ci95'][0]:.3f} to {dr['ci95'][1]:.3f})"
        verdicts = [guard["passed"] for guard in run["promotion"]["guards"]]
        guards = ", ".join(
            f"{verdicts.count(passed)} {word}"
            for passed, word in ((True, "passed"), (False, "failed"), (None, "not measured"))
            if passed in verdicts
        )
        before, after = (run["truth"][name]["outcome_rate"] for name in ("deployed", "improved"))
        lines.append(
            f"| {run['seed']} | {', '.join(f'{shares[s]:.0%}' for s in ('accepted', 'edited', 'rejected'))} "
            f"| {run['estimate']['logs']['return_mean']:.3f} | {told} "
            f"| {run['promotion']['decision']} ({'–' if better is None else f'{better:.2f}'}) | {guards} "
            f"| {before:.3f} → {after:.3f} |"
        )
    return "\n".join(lines)


def write(record: dict[str, Any]) -> None:
    """Puts the table into the page."""
    note = f"{record['date']}, {record['machine']['processor']}, {record['seconds'] / len(record['runs']):.0f} s a row."
    fill(PAGE, {"whole-path": f"{table(record)}\n\n{note}"})


def main() -> None:
    """Goes the path with every seed, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--write", action="store_true", help="only put the recorded table into the page")
    arguments = parser.parse_args()
    if not arguments.write:
        os.chdir(HERE)  # where commands find salesperson.py
        started, runs = time.perf_counter(), []
        for seed in range(1, arguments.seeds + 1):
            with tempfile.TemporaryDirectory() as place:
                runs.append(path(seed, Path(place)))
        record = {
            "command": f"python benchmarks/suggestions/whole_path.py --seeds {arguments.seeds}",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": describe_machine(),
            "seconds": round(time.perf_counter() - started, 1),
            "runs": runs,
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(RESULTS, record)
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(table(record))
    write(record)


if __name__ == "__main__":
    main()
