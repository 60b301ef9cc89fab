"""Files of conversations: read as written, and every bad line told with its file and number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.errors import LogFormatError

GOOD = json.dumps({"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]})


def test_what_was_written_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "talk.jsonl"
    conversations = [
        Conversation(
            "ä-1",
            (
                Turn("Grüße €", "hello", Suggestion("hi", (1, 2), (-0.5, -1.25), "iteration-001"), "edited"),
                Turn("", "bye", reward=1.0),
            ),
            system="sell",
            closing="thanks",
            outcome=1.0,
            seed=17,
            policy_version="iteration-001",
            metadata={"shop": [1, None, "x"]},
        ),
        Conversation("b", (Turn("x", "y\nz"),)),
    ]
    write_conversations(path, conversations)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert read_conversations(path) == conversations
    assert read_conversations([path, path]) == conversations * 2


def test_empty_lines_and_a_byte_order_mark_are_no_conversations(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text("\ufeff" + GOOD + "\n\n  \n" + GOOD, encoding="utf-8")
    assert len(read_conversations(path)) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{nope", "not JSON"),
        (b'{"id": 1}', '"turns" nor "messages"'),
        (b"[1, 2]", "expected a JSON object"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "no agent message"),
        (b'{"messages": [{"role": "owner", "content": "hi"}]}', "role must be"),
        (b'{"messages": [{"role": ["user"], "content": "hi"}]}', "role must be"),
        (b'{"turns": [{"customer": "hi"}]}', '"message" must be a string'),
        (b'{"turns": [{"message": "hi", "suggestion": {"text": "a", "token_ids": null}}]}', '"token_ids" must be'),
        (b'{"turns": [{"message": "hi", "suggestion": {"text": "a", "logprobs": ["x"]}}]}', '"logprobs" must be'),
        (b'{"turns": [{"message": "hi", "suggestion": {"text": "a", "token_ids": [1.7]}}]}', "found [1.7]"),
        (b'{"turns": [{"message": "hi"}], "id": ["x"]}', '"id" must be'),
        (b'{"messages": [{"role": "agent", "content": "hi"}], "id": ["x"]}', '"id" must be'),
        (b'{"turns": [{"message": "hi"}], "seed": "abc"}', '"seed" must be'),
        (b'{"turns": [{"message": "hi"}], "metadata": 5}', '"metadata" must be'),
        (b'{"turns": [{"message": "hi"}], "system": 5}', '"system" must be'),
        (b'{"turns": [{"message": "hi"}], "outcome": "won"}', '"outcome" must be a number'),
        (b'{"turns": [{"message": "hi"}], "outcome": NaN}', "finite"),
        (b'{"turns": [{"message": "\xff"}]}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_told_with_file_and_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\n" + line + b"\n")
    with pytest.raises(LogFormatError) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match="no such file"):
        read_conversations(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(LogFormatError, match="no conversation"):
        read_conversations(empty)


def test_half_of_a_surrogate_pair_is_written_as_json_can(tmp_path: Path) -> None:
    made = [Conversation("ä", (Turn("ü", "half \udc80"),)), Conversation("b", (Turn("ü", "€"),))]
    write_conversations(tmp_path / "logs.jsonl", made)
    assert read_conversations(tmp_path / "logs.jsonl") == made
    assert "half \\udc80" in (tmp_path / "logs.jsonl").read_text(encoding="utf-8")
