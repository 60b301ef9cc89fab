"""Logs that stay on the disk: the same conversations as a list has, found by their place, broken ones told at once."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.conversation_file import ConversationFile, outcomes_known, turn_counts
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.data.turns import split_conversations
from lightning_iterppo.data.views import View, select
from lightning_iterppo.errors import LogFormatError


def talks(count: int, first: int = 0) -> list[Conversation]:
    made = []
    for number in range(first, first + count):
        turns = tuple(Turn("Grüße €", f"said {turn}") for turn in range(1 + number % 4))
        made.append(Conversation(f"ä-{number}", turns, outcome=None if number % 3 == 2 else float(number % 2)))
    return made


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files, the first with a byte order mark, empty lines, and no newline at its end."""
    first, second = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    lines = [json.dumps(talk.to_json(), ensure_ascii=False) for talk in talks(5)]
    first.write_text("\ufeff" + lines[0] + "\n\n  \n" + "\r\n".join(lines[1:]), encoding="utf-8")
    write_conversations(second, talks(6, first=5))
    return [first, second]


def test_it_is_the_list_of_its_conversations(files: list[Path]) -> None:
    read = read_conversations(files)
    found = ConversationFile(files)
    assert len(found) == len(read) == 11
    assert list(found) == read and [found[index] for index in range(11)] == read
    assert found[-1] == read[-1]
    with pytest.raises(IndexError):
        found[11]
    assert list(found[2:9:3]) == read[2:9:3] and list(found[1:][2:4]) == read[3:5]
    assert list(ConversationFile(files[1])) == read[5:]


def test_what_is_known_of_each_without_reading_it(files: list[Path]) -> None:
    read, found = read_conversations(files), ConversationFile(files)
    part = select(found, np.array([7, 0, 2]))
    files[0].unlink()
    files[1].unlink()
    assert isinstance(part, View)
    assert outcomes_known(found).tolist() == [talk.outcome is not None for talk in read]
    assert outcomes_known(part).tolist() == outcomes_known([read[7], read[0], read[2]]).tolist() == [True, True, False]
    assert turn_counts(part).tolist() == turn_counts([read[7], read[0], read[2]]).tolist() == [4, 1, 3]


def test_it_is_split_as_a_list_is(files: list[Path]) -> None:
    expected = split_conversations(read_conversations(files), 0.3, seed=5)
    parts = split_conversations(ConversationFile(files), 0.3, seed=5)
    assert tuple(map(list, parts)) == expected
    assert all(isinstance(part, View) for part in parts)


def test_another_process_can_have_it(files: list[Path]) -> None:
    found = ConversationFile(files)
    assert list(pickle.loads(pickle.dumps(found))) == list(found)
    assert list(pickle.loads(pickle.dumps(found[3:]))) == list(found)[3:]


def test_a_broken_line_is_told_with_its_number_when_it_is_made(files: list[Path]) -> None:
    with open(files[1], "a", encoding="utf-8") as file:
        file.write('{"turns": [{"customer": "hi"}]}\n')
    with pytest.raises(LogFormatError, match=r'two\.jsonl:7: "message" must be a string'):
        ConversationFile(files)


def test_a_file_that_is_missing_or_empty(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(LogFormatError, match="no such file"):
        ConversationFile([*files, tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(LogFormatError, match="no conversation"):
        ConversationFile([*files, tmp_path / "empty.jsonl"])


def test_a_file_that_was_changed_is_told(files: list[Path]) -> None:
    found = ConversationFile(files[1])
    files[1].write_text("\n")
    with pytest.raises(LogFormatError, match=r"two\.jsonl:3: the file has changed"):
        found[2]
