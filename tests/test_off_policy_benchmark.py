"""The validation of off-policy estimates: its cases are exact, and the page says what is recorded."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lightning_iterppo.evaluation.off_policy import OverlapLimits, per_decision

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks" / "off_policy"
RECORD = ROOT / "benchmarks" / "results" / "off_policy" / "exact.json"


@pytest.fixture(scope="module")
def validate() -> Iterator[ModuleType]:
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("validate")
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def test_logs_of_a_case_are_of_its_problem(validate: ModuleType) -> None:
    case = validate.make_case(3, None, 20_000)
    assert case.kl == pytest.approx(0, abs=1e-12)
    assert case.logs.rewards.sum(1).mean() == pytest.approx(case.truth, abs=0.015)
    away = validate.make_case(3, 0.3, 20_000)
    assert away.kl > 0.05 and away.truth > case.truth
    assert np.exp(away.logs.log_weights[:, -1]).mean() == pytest.approx(1, abs=0.05)
    assert per_decision(away.logs).value == pytest.approx(away.truth, abs=0.02)
    # Features of what is done are one of those that are expected, and of its own state.
    assert (away.turns.expected[away.turns.done > 0] > 0).all()
    assert away.turns.done.sum(1) == pytest.approx(2) and away.turns.expected.sum(1) == pytest.approx(2)


def test_a_level_counts_everything_once(validate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CONVERSATIONS", 120), ("SAMPLES", 60), ("FITS", 10)):
        monkeypatch.setattr(validate, name, value)
    found = validate.level(0.1, 4)
    assert found["repetitions"] == 4 and 0 <= found["estimated"] <= 4
    assert (found["of_refused"] is None) == (found["estimated"] == 4)
    assert validate.overall([found])["fqe"].keys() <= {"chosen", "percentile"}


def test_recorded_intervals_cover_as_they_say(record: dict[str, Any]) -> None:
    assert record["settings"]["limits"] == OverlapLimits().__dict__
    assert all(level["repetitions"] >= 200 for level in record["levels"])
    for name, forms in record["coverage"].items():
        assert 0.90 <= forms["chosen"] <= 0.98, name
    for level in record["levels"]:
        if level["estimated"] < 100:
            continue  # too few to measure a share of 95 % to within 8
        for name, figures in level["of_estimated"].items():
            assert 0.90 <= figures["coverage"]["chosen"] <= 0.98, (level["beta"], name)


def test_recorded_intervals_of_the_shop_cover_as_they_say(validate: ModuleType) -> None:
    rows = json.loads(RECORD.with_name("shop.json").read_text(encoding="utf-8"))["rows"]
    estimated = [row for row in rows if row["verdict"] == "estimated"]
    assert len({(row["seed"], row["logs"]) for row in rows}) >= 200
    for distance in (0, 1, 2):
        of_distance = [row for row in estimated if row["iterations"] == distance]
        for name in validate.NAMES:
            assert 0.90 <= validate.share_held(of_distance, name) <= 0.98, (distance, name)


def test_far_away_policies_are_refused(record: dict[str, Any]) -> None:
    shares = [level["estimated"] / level["repetitions"] for level in record["levels"]]
    assert shares[0] == 1 and shares[-1] <= 0.05
    assert shares == sorted(shares, reverse=True)


def test_the_page_is_what_is_recorded(validate: ModuleType) -> None:
    page = (ROOT / "docs" / "off-policy.md").read_text(encoding="utf-8")
    tables = validate.tables()
    assert "exact" in tables
    for name, table in tables.items():
        shown = page.split(f"<!-- {name}:begin -->\n")[1].split(f"\n<!-- {name}:end -->")[0]
        assert shown == table, "run benchmarks/off_policy/validate.py --write"
