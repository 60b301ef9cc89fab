"""Suggestions that a simulated salesperson reviews: what is said of them in docs/suggestions.md is what was found."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks" / "suggestions"
PAGE = (ROOT / "docs" / "suggestions.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def identified() -> ModuleType:
    return importlib.import_module("identified")


def test_the_agents_choice_is_identified_and_the_persons_is_not(
    identified: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identified, "CONVERSATIONS", 8000)
    rows = [line.split("|")[2:4] for line in identified.table().splitlines()[2:]]
    right, wrong, sent, replaced, alone = ([float(cell) for cell in row] for row in rows)
    for seen, done in (right, wrong):
        assert seen == pytest.approx(done, abs=0.06)
    assert replaced[0] - sent[0] > replaced[1] - sent[1] + 0.08, "the log flatters what the person did"
    assert alone[0] > alone[1] + 0.05
    assert len(PAGE.partition("<!-- identified:begin -->")[2].partition("<!-- identified:end")[0].splitlines()) == 8


def test_a_salesperson_does_all_three_and_changes_what_they_say(identified: ModuleType) -> None:
    salesperson = importlib.import_module("salesperson")
    seen = set()
    for seed in range(300):
        customer = salesperson.Customer()
        history = [identified.Message("customer", customer.reset(seed))]
        for text in (identified.RIGHT, "take the jogger", "take the fin"):
            history.append(identified.Message("agent", text))
            sent = customer.review(history)
            assert (sent.disposition == "accepted") <= (sent.message == text)
            seen.add(sent.disposition)
            history[-1] = identified.Message("agent", sent.message)
            reply = customer.reply(history)
            if reply.done:
                break
            history.append(identified.Message("customer", reply.text))
    assert seen == {"accepted", "edited", "rejected"}


def test_the_page_has_the_record_of_the_whole_path() -> None:
    whole_path = importlib.import_module("whole_path")
    record = json.loads(whole_path.RESULTS.read_text(encoding="utf-8"))
    assert whole_path.table(record) in PAGE
    assert whole_path.RECIPE.endswith("recipe.yaml") and len(record["runs"]) >= 5
    for run in record["runs"]:
        assert run["estimate"]["logs"]["censored"] == run["imported"]["outcomes"]["unknown"] > 0
