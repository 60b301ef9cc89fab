"""Suggestions and what became of them come in from chats and tables, and the report says how people used them."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_iterppo.conversation import Disposition, Suggestion, Turn


def message(text: str, suggestion: str | None = None, disposition: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "suggestion": suggestion, "disposition": disposition}


ASKED = {"role": "user", "content": "so"}
TURNS = (
    Turn("so", "blue", Suggestion("blue"), "accepted"),
    Turn("so", "red ones", Suggestion("red one"), "edited"),
    Turn("so", "mine", Suggestion("yours"), "rejected"),
    Turn("so", "own"),
)


def test_from_a_chat(logs: Any) -> None:
    said = [message(t.message, t.suggestion and t.suggestion.text, t.disposition) for t in TURNS]
    messages = [each for answer in said for each in (ASKED, answer)]
    (found,), report = logs.bring("chat", logs.json(logs.chat(*messages)))
    assert found.turns == TURNS
    figures = report.to_json()["dispositions"]
    low, high = figures.pop("acceptance_ci95")
    assert 0.06 < low < 1 / 3 < high < 0.8
    assert figures == {
        "suggestions": 3,
        "acceptance_rate": 1 / 3,
        "shares": {"accepted": 0.25, "edited": 0.25, "rejected": 0.25, "unassisted": 0.25},
        "edit_distance": 1 / 8,
    }


def test_from_a_table(logs: Any) -> None:
    lines = ["conversation,speaker,text,suggestion,disposition"]
    for turn in TURNS:
        made = turn.suggestion.text if turn.suggestion else ""
        lines += ["a,customer,so,,unassisted", f"a,agent,{turn.message},{made},{turn.disposition}"]
    (found,), _ = logs.bring("table", logs.write("t.csv", "\n".join(lines)))
    assert found.turns == TURNS


@pytest.mark.parametrize("choice", ["edited", "rejected"])
def test_what_is_not_said_is_the_owners_choice(logs: Any, choice: str) -> None:
    path = logs.json(logs.chat(message("blue", "blue"), ASKED, message("red", "blue")))
    (found,), _ = logs.bring("chat", path, mapping=logs.mapping(f"without_disposition: {choice}"))
    assert [turn.disposition for turn in found.turns] == ["accepted", choice]


def test_words_of_the_logs(logs: Any) -> None:
    names = "dispositions: {as is: accepted}\nfields: {suggestion: draft, disposition: fate}"
    said = {"role": "assistant", "content": "hi", "draft": "hi", "fate": "as is"}
    (found,), _ = logs.bring("chat", logs.json(logs.chat(said)), mapping=logs.mapping(names))
    assert found.turns == (Turn("", "hi", Suggestion("hi"), "accepted"),)


@pytest.mark.parametrize(
    ("second", "joined"),
    [
        (message("b", "b", "accepted"), "accepted"),
        (message("b", "c", "edited"), "edited"),
    ],
)
def test_neighbours_are_joined_with_their_suggestions(logs: Any, second: dict[str, Any], joined: Disposition) -> None:
    (found,), report = logs.bring("chat", logs.json(logs.chat(message("a", "a", "accepted"), second)))
    assert found.turns == (Turn("", "a\nb", Suggestion(f"a\n{second['suggestion']}"), joined),)
    assert report.changes == {"messages joined with the one before": 1}
