"""ConversationLogger: what the file says, where it is, and that odd text cannot spoil it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks import ConversationLogger
from lightning_iterppo.conversation import Conversation, Turn


def written(loop: Any, collected: list[Conversation], **arguments: Any) -> str:
    loop.conversations = collected
    loop.move("collect", iteration=2)
    callback = ConversationLogger(**arguments)
    callback.on_run_start(loop)
    callback.on_collect_end(loop)
    return str((loop.run_dir.path / "samples" / "iteration-002.md").read_text(encoding="utf-8"))


def test_a_conversation_can_be_read_from_beginning_to_end(loop: Any, conversation: Conversation) -> None:
    assert written(loop, [conversation]) == (
        "# Iteration 2: 1 of 1 conversations\n\n"
        "## 1. shop-17\n\n"
        "outcome 1, 2 turns, seed 17, policy iteration-002\n\n"
        "**System**\n\n> You sell boots.\n\n"
        "**Customer**\n\n> Hello, I need boots\n\n"
        "**Agent** (accepted)\n\n> What for?\n\n"
        "**Customer**\n\n> Hiking\n\n"
        "**Agent's suggestion**, not sent as it is\n\n> Buy now!\n\n"
        "**Agent** (edited, reward 1)\n\n> The Alpina, 89 euros.\n\n"
        "**Customer**\n\n> I take them.\n"
    )


def test_only_the_first_conversations_are_written(loop: Any, conversation: Conversation) -> None:
    many = [replace(conversation, id=f"c{i}") for i in range(5)]
    text = written(loop, many, conversations=2)
    assert text.startswith("# Iteration 2: 2 of 5 conversations\n")
    assert "c1" in text
    assert "c2" not in text


def test_an_unknown_outcome_is_not_a_zero(loop: Any, conversation: Conversation) -> None:
    assert "outcome unknown" in written(loop, [replace(conversation, outcome=None)])


def test_markup_and_control_characters_stay_text(loop: Any) -> None:
    message = "# Sale\n- <b>now</b> *wow*\n\x1b[31mred\udc80"
    text = written(loop, [Conversation("x", (Turn("", message),))])
    assert "> \\# Sale\n> \\- \\<b>now\\</b> \\*wow\\*\n> �\\[31mred\\\\udc80\n" in text


def test_an_empty_message_can_be_seen(loop: Any) -> None:
    assert "**Agent** (unassisted)\n\n> *(empty)*\n" in written(loop, [Conversation("x", (Turn("Hello", " "),))])


def test_nothing_but_the_whole_file_is_left_behind(loop: Any, conversation: Conversation) -> None:
    written(loop, [conversation])
    written(loop, [conversation, conversation])
    assert [path.name for path in (loop.run_dir.path / "samples").iterdir()] == ["iteration-002.md"]


def test_an_iteration_without_conversations_says_so(loop: Any) -> None:
    assert written(loop, []) == "# Iteration 2: 0 of 0 conversations\n"


def test_prints_on_standard_error_only_when_asked(
    loop: Any, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    written(loop, [conversation])
    assert capsys.readouterr() == ("", "")
    written(loop, [conversation], console=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "I take them." in err


def test_other_ranks_neither_write_nor_print(
    loop: Any, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.is_main = False
    loop.conversations = [conversation]
    ConversationLogger(console=True).on_collect_end(loop)
    assert not (loop.run_dir.path / "samples").exists()
    assert capsys.readouterr() == ("", "")


def test_without_a_run_directory_it_needs_the_console(
    loop: Any, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.run_dir = None
    loop.conversations = [conversation]
    with pytest.raises(MisconfigurationException, match="nowhere to write"):
        ConversationLogger().on_run_start(loop)
    callback = ConversationLogger(console=True)
    callback.on_run_start(loop)
    callback.on_collect_end(loop)
    assert "shop-17" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [{"conversations": 0}, {"conversations": "all"}, {"console": 1}])
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=next(iter(arguments))):
        ConversationLogger(**arguments)
