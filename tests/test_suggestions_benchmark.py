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
        estimate, truth = run["estimate"], run["truth"]["improved"]["outcome_rate"]
        assert estimate["logs"]["censored"] == run["imported"]["outcomes"]["unknown"] > 0
        low, high = estimate["doubly_robust"]["ci95"]
        assert low < truth < high and truth > estimate["logs"]["return_mean"], "what the page says of every row"
        guards = run["promotion"]["guards"]
        assert len(guards) == 7 and all(guard["passed"] for guard in guards)


def test_a_row_that_the_logs_cannot_tell_of_is_a_row_all_the_same() -> None:
    whole_path = importlib.import_module("whole_path")
    record = json.loads(whole_path.RESULTS.read_text(encoding="utf-8"))
    (run, *_) = record["runs"]
    run["estimate"]["doubly_robust"] = {"value": None, "ci95": None}
    run["promotion"] |= {"decision": "keep", "probability_better": None}
    assert "| cannot tell | keep (–) |" in whole_path.table({"runs": [run]})


def test_the_deployed_policy_is_the_measure_of_the_text_on_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_path = importlib.import_module("whole_path")
    said: list[list[str]] = []
    monkeypatch.setattr(whole_path, "command", lambda *words, codes=(0,): said.append([str(word) for word in words]))
    monkeypatch.setattr(whole_path, "part_with_outcomes", lambda *files: None)
    whole_path.path(1, tmp_path)
    (promote,) = [words for words in said if words[0] == "promote"]
    chosen = {option: promote[promote.index(option) + 1] for option in ("--current", "--reference")}
    assert set(chosen.values()) == {str(tmp_path / "deployed")}
    assert " ".join(promote[2:]).replace(f"{tmp_path}/", "") in PAGE, "the page says the same command"
