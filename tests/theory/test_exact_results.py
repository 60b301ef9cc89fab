"""What is recorded of the loop on exact problems: that it is enough, and that docs/theory.md says the same."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "exact" / "results.json").read_text())


def test_the_loop_reaches_nearly_the_optimum_on_every_problem() -> None:
    reached = [problem["iterations"][-1]["after"] / problem["optimum"] for problem in RECORD["problems"]]
    assert len(reached) == 20
    assert min(reached) >= 0.95


def test_the_improvements_follow_the_exact_ones() -> None:
    """All together gain less than the exact ones of the same KL, and more than half as much."""
    gained = [(i["after"] - i["before"], i["exact"] - i["before"]) for p in RECORD["problems"] for i in p["iterations"]]
    assert all(exact >= -1e-9 for _, exact in gained)
    assert 0.5 < sum(gain for gain, _ in gained) / sum(exact for _, exact in gained) < 1.0


def test_the_page_says_what_was_recorded() -> None:
    summary = runpy.run_path(str(ROOT / "benchmarks" / "exact" / "run.py"))["summary"]
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    for line in summary(RECORD["problems"]).splitlines():
        assert line in page
    assert RECORD["date"] in page
    assert RECORD["machine"]["processor"] in page
    for name in ("exact-curves.svg", "exact-gains.svg"):
        assert f"images/{name}" in page and (ROOT / "docs" / "images" / name).is_file()
