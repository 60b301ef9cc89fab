"""The page of attribution says what is recorded, and the benchmark measures turns as it says."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from scripts import load_script

from lightning_iterppo.conversation import Conversation, Turn


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmarks/persuasion/critic.py")


def test_figures_are_over_all_turns_and_over_the_last_quarter(benchmark: ModuleType) -> None:
    talks = [
        Conversation(str(n), tuple(Turn("hm", "yes") for _ in range(8)), outcome=float(n % 2 == 0)) for n in range(12)
    ]
    scores = {talk.id: [0.5] * 6 + [0.9 if talk.outcome else 0.1] * 2 for talk in talks}
    found = benchmark.measured(talks, scores)
    assert found["all"]["turns"] == 96 and found["late"]["turns"] == 24
    assert found["late"]["value"]["auroc"] == 1.0 and found["late"]["value"]["brier"] == pytest.approx(0.01)
    # Pairs of turns of which both are late are ranked, of the others half.
    assert 0.5 < found["all"]["value"]["auroc"] < 1.0
    low, high = found["late"]["ci95"]["brier"]
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)


def test_the_page_is_what_is_recorded(benchmark: ModuleType) -> None:
    record = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    page = benchmark.PAGE.read_text(encoding="utf-8")
    assert f"<!-- figures:begin -->\n{benchmark.table(record)}\n<!-- figures:end -->" in page
    for name in ("gave", "did-not", "moved"):
        assert (benchmark.PAGE.parent / "images" / f"attribution-{name}.svg").is_file()
        assert f"<!-- {name}:begin -->\n| | who | message |" in page
