"""What is recorded of the benchmarks of speed, and a page that says it."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks" / "speed"
RESULTS = ROOT / "benchmarks" / "results" / "speed"
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(HERE)
    yield importlib.import_module("report")
    sys.modules.pop("report")


def test_the_page_says_what_was_recorded(report: ModuleType) -> None:
    assert PAGE.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0].strip() == report.table().strip()


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks" / "results" / "speed").glob("update-*.json")), ids=lambda file: file.stem
)
def test_ratios_are_of_what_was_measured_in_turn(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    peer = found["sides"]["trl"]
    assert len(peer["seconds"]) >= (3 if file.stem in ("update-smoke", "update-settings") else 5)
    for side, ratios in found["ratios"].items():
        own = found["sides"][side]
        pairs = [a / b for a, b in zip(peer["seconds"], own["seconds"], strict=True)]
        assert ratios["speed"] == pytest.approx([statistics.median(pairs), min(pairs), max(pairs)], rel=1e-2)
        assert ratios["memory"] == pytest.approx(own["peak_memory_bytes"] / peer["peak_memory_bytes"])
        tokens = found["work"]["episodes"] * found["work"]["response_tokens"]
        assert all(other["generated"] == tokens for other in own["others"])
        assert all(other["steps"] == found["work"]["ppo_epochs"] for other in own["others"])


def test_a_missing_measurement_is_no_row(report: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.table() == "Not measured yet."


@pytest.mark.parametrize(("memory", "word"), [(300, "reached"), (400, "**missed**")])
def test_a_goal_is_reached_in_time_and_memory_or_missed(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: int, word: str
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    record = {
        "command": "python x",
        "date": "2026-01-01",
        "machine": {"processor": "p", "cores": 2, "torch": "t"},
        "sides": {
            "trl": {"seconds": [9.0, 12.0], "peak_memory_bytes": 1000},
            "ours": {"seconds": [3.0, 3.0], "peak_memory_bytes": memory},
        },
        "ratios": {"ours": {"speed": [3.5, 3.0, 4.0], "memory": memory / 1000}},
    }
    (tmp_path / "update-lora.json").write_text(json.dumps(record), encoding="utf-8")
    row = report.updates("lora", "LoRA")[1]
    assert "3.50 × (3.00 to 4.00)" in row
    assert row.endswith(f"| {word} |")


def test_a_slowdown_against_the_record_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    update = importlib.import_module("update")
    try:
        recorded = {"ours": {"speed": [4.0, 3.0, 5.0], "memory": 0.3}}
        update.check({"ours": {"speed": [2.7, 2.0, 3.0], "memory": 0.3}}, recorded)
        with pytest.raises(SystemExit, match=r"slower than it was: ours: 2\.60 times as fast as TRL, 4\.00"):
            update.check({"ours": {"speed": [2.6, 2.0, 3.0], "memory": 0.3}}, recorded)
    finally:
        for name in ("update", "sides"):
            sys.modules.pop(name)
