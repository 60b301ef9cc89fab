"""Learning from people's logs alone: keeps a finished run of the recipe ``persuasion`` and writes what it took.

``iterppo train persuasion data.path=DIRECTORY/train.jsonl -o RUN``, and then ``python benchmarks/persuasion/train.py
RUN`` writes ``benchmarks/results/persuasion/train.json`` and the table in ``docs/recipes.md``. Without a RUN it only
writes the table of what is recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_iterppo.composition import compose, load_recipe
from lightning_iterppo.errors import RunDirectoryError
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from pages import fill  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "persuasion" / "train.json"
PAGE = ROOT / "docs" / "recipes.md"


def kept(run: Path) -> dict[str, Any]:
    """What is recorded of a run.

    Raises:
        RunDirectoryError: it is no run, it did not finish, or its recipe is not the package's.
    """
    directory = RunDirectory.open(run)
    summary = directory.read_summary()
    if summary.status != "finished":
        raise RunDirectoryError(f"{run} is {summary.status}, not finished")
    recipe = load_recipe(directory.recipe)
    if recipe != compose("persuasion", [f'data.path="{recipe.logs["path"]}"', f"seed={recipe.seed}"]):
        raise RunDirectoryError(f"{run} is of another recipe than `iterppo train persuasion data.path=FILE`")
    (iteration,) = summary.iterations
    made = datetime.fromtimestamp(directory.summary.stat().st_mtime, tz=timezone.utc)
    return {
        "command": f"iterppo train persuasion data.path=train.jsonl seed={recipe.seed}",
        "date": made.date().isoformat(),
        "machine": summary.machine,
        "seconds": summary.seconds + summary.evaluation_seconds,
        "peak_memory_bytes": summary.peak_memory_bytes,
        "critic": iteration.critic,
        "policy": iteration.policy,
        "estimate": summary.estimate,
    }


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table, with where it comes from."""
    critic, policy, estimate, machine = (record[key] for key in ("critic", "policy", "estimate", "machine"))
    said = estimate["verdict"] + (f": {'; '.join(estimate['reasons'])}" if estimate["reasons"] else "")
    rows = {
        "minutes": f"{record['seconds'] / 60:.1f}",
        "peak memory, GB": f"{record['peak_memory_bytes'] / 1e9:.1f}",
        "Q, cross-validated: AUROC": f"{critic['auroc']:.3f}",
        "Q, cross-validated: Brier score (of a constant)": f"{critic['brier']:.3f} ({critic['brier_constant']:.3f})",
        "what Q promises for a response": f"{policy['reward_gain']:+.3f}",
        "KL to the warm-started policy, nats a response": f"{policy['kl_old']:.3f}",
        "off-policy estimate": said,
    }
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return "\n".join([*lines, "", f"`{record['command']}`: {record['date']}, {where}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a finished run of the recipe")
    arguments = parser.parse_args()
    if arguments.run is not None:
        try:
            write_json_atomically(RESULTS, kept(arguments.run))
        except RunDirectoryError as error:
            parser.error(str(error))
    fill(PAGE, {"persuasion": table(json.loads(RESULTS.read_text(encoding="utf-8")))})


if __name__ == "__main__":
    main()
