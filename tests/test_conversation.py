"""Conversations as plain data: their JSON forms, returns and visible messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_iterppo.conversation import Conversation, ConversationError, Message, Suggestion, Turn


def a_conversation() -> Conversation:
    return Conversation(
        "c-1",
        (
            Turn("hello", "what for ?", Suggestion("buy", (5, 1), (-0.1, -0.2), "iteration-000"), "rejected"),
            Turn("hiking", "the red one", Suggestion("the red one", (6, 7, 1)), "accepted", 0.5),
            Turn("", "anything else ?", reward=2.0),
        ),
        system="sell",
        closing="no",
        outcome=2.5,
        seed=3,
        metadata={"region": "north"},
    )


def test_our_own_form_goes_through_json_unchanged() -> None:
    made = a_conversation()
    assert Conversation.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_returns_are_discounted_from_the_end() -> None:
    assert a_conversation().returns() == [2.5, 2.5, 2.0]
    assert a_conversation().returns(0.5) == [0.0 + 0.5 * (0.5 + 0.5 * 2.0), 0.5 + 0.5 * 2.0, 2.0]


def test_what_both_sides_saw() -> None:
    assert a_conversation().messages == [
        Message("customer", "hello"),
        Message("agent", "what for ?"),
        Message("customer", "hiking"),
        Message("agent", "the red one"),
        Message("agent", "anything else ?"),
        Message("customer", "no"),
    ]


def test_as_sent_the_agents_own_messages_are_the_actions() -> None:
    made, sent = a_conversation(), a_conversation().as_sent()
    assert sent.messages == made.messages
    assert sent.returns() == made.returns()
    assert sent.turns[0] == Turn("hello", "what for ?")  # the suggestion was rejected
    assert sent.turns[1:] == made.turns[1:]


def chat(*messages: tuple[str, str], **more: Any) -> Conversation:
    return Conversation.from_json(
        {"id": 7, "messages": [{"role": role, "content": content} for role, content in messages], **more}
    )


def test_the_chat_form_puts_the_whole_outcome_on_the_last_turn() -> None:
    made = chat(
        ("system", "sell"), ("user", "hi"), ("assistant", "hello"), ("user", "hat ?"), ("assistant", "yes"), outcome=1
    )
    assert made == Conversation(
        "7", (Turn("hi", "hello"), Turn("hat ?", "yes", reward=1.0)), system="sell", outcome=1.0
    )
    assert made.returns() == [1.0, 1.0]


def test_the_chat_form_with_unknown_outcome_stays_unknown() -> None:
    assert chat(("user", "hi"), ("assistant", "hello")).outcome is None
    assert chat(("user", "hi"), ("assistant", "hello"), outcome=None).outcome is None
    assert chat(("user", "hi"), ("assistant", "hello"), outcome=False).outcome == 0.0


def test_neighbours_of_one_role_are_one_message() -> None:
    made = chat(("user", "hi"), ("user", "there"), ("assistant", "a"), ("assistant", "b"), ("user", "bye"), shop="x")
    assert made.turns == (Turn("hi\nthere", "a\nb"),)
    assert made.closing == "bye"
    assert made.metadata == {"shop": "x"}


def test_an_agent_that_speaks_first() -> None:
    assert chat(("assistant", "welcome"), ("user", "hi"), ("assistant", "hat ?")).turns == (
        Turn("", "welcome"),
        Turn("hi", "hat ?"),
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "expected a JSON object"),
        ({}, "neither"),
        ({"turns": []}, "at least one turn"),
        ({"turns": [3]}, "turn 0 must be an object"),
        ({"turns": [{"message": "a"}, {"message": "b", "disposition": "ignored"}]}, "turn 1: disposition must be one"),
        ({"turns": [{"message": "a", "suggestion": "b"}]}, "turn 0: .suggestion. must be an object"),
        ({"turns": [{"message": "a", "reward": "1"}]}, "must be a number"),
        ({"turns": [{"message": "a", "reward": float("inf")}]}, "must be finite"),
        ({"messages": {}}, "at least one message"),
        ({"messages": ["hi"]}, "message 0 must be an object"),
        ({"messages": [{"role": "user"}]}, '"content" must be a string'),
    ],
)
def test_what_is_no_conversation(record: Any, reason: str) -> None:
    with pytest.raises(ConversationError, match=reason):
        Conversation.from_json(record)
