"""What is recorded of the plan's check, and a page that says it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling"
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(params=["check", "setups"])
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "scaling")
    yield importlib.import_module(request.param)
    sys.modules.pop(request.param)


def test_the_page_says_what_was_recorded(script: ModuleType) -> None:
    name = script.__name__
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    part = PAGE.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0].strip()
    assert part == script.table(record if name == "check" else record["rows"]).strip()


def test_what_was_measured_is_of_three_sizes_and_both_adaptations() -> None:
    record = json.loads((RESULTS / "check.json").read_text(encoding="utf-8"))
    rows = [(row["size"], row["adaptation"]) for row in record["rows"]]
    assert len(set(rows)) == len(rows) == 6
    for row in record["rows"]:
        moments = row["plan"]["moments"]
        assert row["plan"]["memory"] == max(sum(each.values()) for each in moments.values())
        assert row["measured"]["memory"]["peak"] > row["measured"]["memory"]["before"]


def test_memory_is_planned_within_the_goal() -> None:
    """Of time the record says how far it is off: it is only as good as the machine was quiet."""
    record = json.loads((RESULTS / "check.json").read_text(encoding="utf-8"))
    for row in record["rows"]:
        assert row["plan"]["memory"] == pytest.approx(row["measured"]["memory"]["peak"], rel=0.15), row["size"]


def test_a_larger_model_needs_more_of_every_set_up() -> None:
    rows = json.loads((RESULTS / "setups.json").read_text(encoding="utf-8"))["rows"]
    for set_up in {row["set_up"] for row in rows}:
        for kind in ("lora", "full"):
            peaks = [row["peak"] for row in rows if (row["set_up"], row["adaptation"]) == (set_up, kind)]
            assert peaks == sorted(peaks)
