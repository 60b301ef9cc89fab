"""A window on long histories: whole messages, the first and the newest, and the same for whoever asks."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lightning_iterppo.conversation import Conversation, Message, Turn
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer
from lightning_iterppo.models.window import Window

WORDS = ["hello", "hat", "red", "blue", *(f"w{n}" for n in range(40))]


def renderer(window: Window | None) -> ChatRenderer:
    return ChatRenderer(make_scratch_tokenizer(WORDS, 512), None, window)


def history(turns: int) -> list[Message]:
    said = [(Message("customer", f"w{n} hello"), Message("agent", f"w{n} hat")) for n in range(turns)]
    return [message for pair in said for message in pair] + [Message("customer", "red blue")]


def test_a_history_that_fits_is_read_whole() -> None:
    wide, none = renderer(Window(512)), renderer(None)
    assert wide.prompt_text(None, history(8)) == none.prompt_text(None, history(8))


@pytest.mark.parametrize("turns", [3, 5, 9, 20])
def test_the_first_messages_and_the_newest_stay_and_no_message_is_cut_in_two(turns: int) -> None:
    window = renderer(Window(48))
    text = window.prompt_text("red hat", history(turns))
    assert len(window.encode(text)) <= 48
    for message in (*history(turns)[:2], history(turns)[-1]):
        assert message.content in text
    whole = [m.content for m in history(turns)]
    kept = [content for content in whole if content in text]
    assert text == renderer(None).prompt_text("red hat", [m for m in history(turns) if m.content in kept])
    assert kept == [*whole[:2], *whole[len(whole) - len(kept) + 2 :]]


def test_roles_go_on_alternating() -> None:
    for first in (0, 1, 2, 3):
        window = Window(40, first)
        for turns in range(2, 20):
            messages = history(turns)
            dropped = window.dropped([5] * len(messages), [m.role for m in messages])
            kept = [*messages[:first], *messages[first + dropped :]]
            assert kept[-1] is messages[-1]
            if first:
                assert all(a.role != b.role for a, b in pairwise(kept))


def test_what_was_left_out_stays_out_and_most_turns_leave_out_nothing_more() -> None:
    window = Window(60)
    dropped = [window.dropped([5] * n, ["customer", "agent"] * n) for n in range(3, 60)]
    assert dropped == sorted(dropped)
    assert len(set(dropped)) < 20, "each cut makes room for several turns"


def test_a_message_that_does_not_fit_by_itself_is_read_whole() -> None:
    window = renderer(Window(20))
    long = Message("customer", " ".join(WORDS))
    assert long.content in window.prompt_text(None, [*history(2)[:4], long])


def test_states_of_a_rendered_conversation_are_the_prompts_and_cuts_are_counted() -> None:
    window = renderer(Window(48))
    conversation = Conversation("c", tuple(Turn(f"w{n} hello", f"w{n} hat") for n in range(12)), outcome=1.0)
    rendered = window.render(conversation)
    messages: list[Message] = []
    cut = 0
    for turn, state in zip(conversation.turns, rendered.states, strict=True):
        messages.append(Message("customer", turn.customer))
        prompt = window.encode(window.prompt_text(None, messages))
        assert rendered.tree.path(state) == prompt
        cut += prompt != window.encode(renderer(None).prompt_text(None, messages))
        messages.append(Message("agent", turn.message))
    assert (window.cuts.states, window.cuts.cut) == (12, cut)
    assert 0 < cut < 12


def test_a_window_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Window(0)
