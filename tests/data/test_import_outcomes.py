"""Outcomes that come later are joined by the conversation's id, and what finds no partner is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.errors import ConfigError, LogFormatError


@pytest.fixture
def talks(logs: Any) -> Path:
    """Three conversations without an outcome, and one with."""
    said = [("user", "hi"), ("assistant", "yo"), ("user", "and?"), ("assistant", "so")]
    made = [logs.chat(*said, id=name) for name in ("a", "b", "3")]
    path: Path = logs.json(*made, logs.chat(*said, id="d", outcome=1))
    return path


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_they_are_joined_and_the_rest_is_counted(logs: Any, talks: Path, form: str) -> None:
    pairs = [("a", 0), ("3", 2.5), ("x", 1), ("y", 1), ("a", 0), ("b", None)]
    if form == "csv":
        text = "id,outcome\n" + "".join(f"{name},{'' if value is None else value}\n" for name, value in pairs)
        later = logs.write("later.csv", text)
    else:
        made = [{"id": int(name) if name == "3" else name, "outcome": value} for name, value in pairs]
        later = logs.json(*made, name="later.jsonl")
    found, report = logs.bring("chat", talks, outcomes=later)
    assert [talk.outcome for talk in found] == [0.0, None, 2.5, 1.0]
    assert [[turn.reward for turn in talk.turns] for talk in found] == [[0, 0], [0, 0], [0, 2.5], [0, 1]]
    assert report.to_json()["delayed_outcomes"] == {
        "read": 4,
        "repeated": 1,
        "empty": 1,
        "dropped": {},
        "matched": 2,
        "conversations_without": 1,
        "outcomes_without_conversation": 2,
    }


def test_every_format_is_joined(logs: Any, talks: Path) -> None:
    later = logs.write("later.csv", "id,outcome\na,1\n")
    ours = logs.place / "ours.jsonl"
    logs.bring("chat", talks)
    logs.output.rename(ours)
    table = logs.write("t.csv", "conversation,speaker,text\na,agent,hi\nb,agent,hi\n")
    shared = logs.json({"id": "a", "conversations": [{"from": "gpt", "value": "hi"}]}, name="s.jsonl")
    for form, path in (("iterppo", ours), ("table", table), ("sharegpt", shared)):
        found, report = logs.bring(form, path, outcomes=later)
        assert (found[0].outcome, found[0].turns[-1].reward) == (1.0, 1.0), form
        assert report.outcomes_matched == 1, form


def test_rewards_that_the_outcome_contradicts(logs: Any) -> None:
    path = logs.json(logs.chat({"role": "assistant", "content": "hi", "reward": 0.5}))
    assert logs.bring("chat", path, outcomes=logs.write("o.csv", "id,outcome\na,0.5\n"))[0][0].outcome == 0.5
    with pytest.raises(LogFormatError, match=r"logs\.jsonl:1: rewards that are not the outcome"):
        logs.bring("chat", path, outcomes=logs.write("o.csv", "id,outcome\na,1\n"))


def test_the_log_and_the_file_may_not_differ(logs: Any, talks: Path) -> None:
    assert logs.bring("chat", talks, outcomes=logs.write("o.csv", "id,outcome\nd,1\n"))[1].outcomes_matched == 1
    later = logs.write("o.csv", "id,outcome\nd,0\n")
    with pytest.raises(LogFormatError, match=r"logs\.jsonl:4: two outcomes: the log says 1, and .*o\.csv:2 says 0"):
        logs.bring("chat", talks, outcomes=later)
    _, report = logs.bring("chat", talks, outcomes=later, skip_bad=True)
    assert report.dropped == {"two outcomes": 1}
    assert (report.outcomes_matched, report.outcomes_unmatched) == (0, 0)


def test_columns_by_other_names(logs: Any, talks: Path) -> None:
    names = "outcomes: {conversation: ticket, outcome: sale}\noutcome_values: {won: 1}\n"
    later = logs.write("o.csv", "shop,sale,ticket\nn,won,b\n")
    found, _ = logs.bring("chat", talks, outcomes=later, mapping=logs.mapping(names))
    assert found[1].outcome == 1.0


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("o.csv", "id,outcome\na,1\na,0\n", ":3: conversation 'a' has the outcome 0 here and 1 at .*:2; leave one"),
        ("o.csv", "ticket,outcome\na,1\n", r":1: there is no column 'id', .*outcomes: \{conversation: NAME"),
    ],
)
def test_files_of_outcomes_that_cannot_be_skipped(logs: Any, talks: Path, name: str, text: str, reason: str) -> None:
    for skip_bad in (False, True):
        with pytest.raises(LogFormatError, match=reason):
            logs.bring("chat", talks, outcomes=logs.write(name, text), skip_bad=skip_bad)


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("o.csv", "id,outcome\na,1\nb\n", 3, "a row of another length"),
        ("o.csv", "id,outcome\na,1\n,1\n", 3, "an outcome without an id"),
        ("o.csv", "id,outcome\na,1\nb,maybe\n", 3, "not a number"),
        ("o.jsonl", json.dumps({"id": "a", "outcome": 1}) + "\n{nope\n", 2, "not JSON"),
        ("o.jsonl", json.dumps({"id": "a", "outcome": 1}) + '\n{"id": "b"}\n', 2, "no outcome"),
    ],
)
def test_a_broken_line_of_outcomes(logs: Any, talks: Path, name: str, text: str, line: int, reason: str) -> None:
    later = logs.write(name, text)
    with pytest.raises(LogFormatError, match=f"^{later}:{line}: {reason}"):
        logs.bring("chat", talks, outcomes=later)
    assert logs.nothing_left()
    found, report = logs.bring("chat", talks, outcomes=later, skip_bad=True)
    assert [talk.outcome for talk in found] == [1.0, None, None, 1.0]
    assert report.to_json()["delayed_outcomes"]["dropped"] == {reason: 1}


def test_files_that_are_not_there_or_of_another_kind(logs: Any, talks: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        logs.bring("chat", talks, outcomes=logs.place / "none.csv")
    with pytest.raises(ConfigError, match=r"a \.csv or a \.jsonl file was expected"):
        logs.bring("chat", talks, outcomes=logs.write("o.txt", "id,outcome\n"))
