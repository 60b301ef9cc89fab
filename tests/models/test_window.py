"""A window on long histories: whole messages, the first and the newest, and the same for whoever asks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from lightning_iterppo.conversation import Conversation, Message, Turn
from lightning_iterppo.errors import ConfigError, LogDataError
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


def histories(seed: int, count: int) -> Iterator[tuple[Window, list[int], list[str], int]]:
    """Windows, and histories of all kinds of sizes that either opens and that end with the customer."""
    rng = random.Random(seed)
    for number in range(count):
        speakers = ("customer", "agent") if number % 2 else ("agent", "customer")
        length = 2 * rng.randrange(1, 15) + 1 if number % 2 else 2 * rng.randrange(1, 15)
        counts = [rng.choice((5, 10, rng.randrange(1, 60), rng.randrange(1, 400))) for _ in range(length)]
        if rng.random() < 0.3:
            counts = [10] * length
        window = Window(rng.randrange(1, 200), rng.randrange(0, 6))
        yield window, counts, [speakers[place % 2] for place in range(length)], rng.choice((0, 0, 7))


def test_what_is_kept_alternates_and_fits_whatever_the_sizes_and_whoever_opens() -> None:
    cut = gave_way = 0
    for window, counts, roles, fixed in histories(1, 3000):
        start, stop = window.gap(counts, roles, fixed)
        whole = list(range(len(counts)))
        kept = [*whole[:start], *whole[stop:]]
        assert kept[-1] == whole[-1], "the newest message stays"
        if start:
            assert all(roles[one] != roles[other] for one, other in pairwise(kept))
        assert max(window.first - 1, 0) <= start <= window.first
        size = fixed + sum(counts[place] for place in kept)
        assert size <= window.tokens or fixed + sum(counts[: window.first]) + counts[-1] > window.tokens
        if window.fits(counts, fixed):
            assert kept == whole
        if start < window.first < len(counts):
            # Somewhere on the way the first messages, the newest and the one before it were too much.
            ends = [n for n in range(window.first + 2, len(counts) + 1) if roles[n - 1] == "customer"]
            assert any(fixed + sum(counts[: window.first]) + sum(counts[n - 2 : n]) > window.tokens for n in ends)
            gave_way += 1
        cut += stop > start
    assert cut > 1000 and gave_way > 50, "there was something to see"


@pytest.mark.parametrize("sizes", [[10, 10, 10, 200], [10] * 8])
def test_the_agent_may_have_opened(sizes: list[int]) -> None:
    roles = ["agent", "customer"] * 4
    for tokens in (24, 35, 50):
        start, stop = Window(tokens).gap(sizes, roles)
        kept = [*roles[:start], *roles[stop : len(sizes)]]
        assert all(one != other for one, other in pairwise(kept)) and kept[-1] == "customer"


def test_what_was_left_out_stays_out_and_most_turns_leave_out_nothing_more() -> None:
    window = Window(60)
    gaps = [window.gap([5] * n, ["customer", "agent"] * n) for n in range(3, 60, 2)]
    assert gaps == sorted(gaps)
    assert len(set(gaps)) < 10, "each cut makes room for several turns"
    for wide, counts, roles, fixed in histories(2, 500):
        ends = [n for n in range(1, len(counts) + 1) if roles[n - 1] == "customer"]
        found = [wide.gap(counts[:n], roles[:n], fixed) for n in ends]
        assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in pairwise(found))


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


def test_a_history_of_which_nothing_may_be_left_out_counts_as_cut_too() -> None:
    window = renderer(Window(16))
    said = " ".join(["red"] * 30)
    window.render(Conversation("c", (Turn("hello", "hat"), Turn(said, "hat")), outcome=1.0))
    assert (window.cuts.states, window.cuts.cut) == (2, 1)
    window.count_cuts(Conversation("d", (Turn(said, "hat"),), outcome=1.0))
    assert (window.cuts.states, window.cuts.cut) == (3, 2)


def test_a_template_that_insists_on_alternating_takes_what_a_window_leaves() -> None:
    strict = (
        "{% for m in messages %}{% if not loop.first and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{{ '<customer> ' if m.role == 'user' else '<agent> ' }}{{ m.content }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<agent> {% endif %}"
    )
    talk = Conversation("c", tuple(Turn("red hat" if n else "", "hello") for n in range(9)), outcome=1.0)
    for tokens in (16, 24, 40):
        window = renderer(Window(tokens))
        window.tokenizer.chat_template = strict
        assert len(window.render(talk).states) == 9
        assert 0 < window.cuts.cut < 9
    with pytest.raises(LogDataError, match=r"^conversation 'two': the model's chat template refuses a history of 3 "):
        window.render(Conversation("two", (Turn("", "hello"), Turn("", "hat"), Turn("red", "hat")), outcome=1.0))


# -- what the model can read -----------------------------------------------------------------------------------------


def limited(limit: int, window: Window | None = None, room: int = 0) -> ChatRenderer:
    return ChatRenderer(make_scratch_tokenizer(WORDS, 512), None, window, limit=limit, room=room)


def test_a_log_that_the_model_cannot_read_is_refused_with_the_window_that_helps() -> None:
    talk = Conversation("long", tuple(Turn("w1 hello", "w1 hat") for _ in range(8)), outcome=1.0)
    whole = len(renderer(None).render(talk).tree)  # 8 turns of 4 tokens each side
    assert len(limited(whole).render(talk).tree) == whole
    said = "conversation 'long': the history of turn 8 has 61 tokens, 64 with the response, and the model reads 63: "
    assert whole == 64
    with pytest.raises(LogDataError) as refused:
        limited(63).render(talk)
    assert str(refused.value) == said + "have it cut, with model.window=60"
    limited(63, Window(60)).render(talk)
    with pytest.raises(LogDataError, match=r"reads 63: have it cut, with model\.window=60"):
        limited(63, Window(61)).render(talk)
    one = Conversation("one", (Turn(" ".join(["red"] * 90), "hat"),), outcome=1.0)
    with pytest.raises(LogDataError, match=r"conversation 'one': a history of 1 messages .*lower model\.window_first"):
        limited(63, Window(40)).render(one)


def test_a_prompt_leaves_room_for_the_response() -> None:
    tokens = len(renderer(None).encode(renderer(None).prompt_text(None, history(8))))
    assert limited(tokens + 5, room=5).prompt_text(None, history(8))
    with pytest.raises(
        ConfigError, match=rf"^a history of 17 messages has {tokens} tokens, {tokens + 5} with the resp"
    ):
        limited(tokens + 4, room=5).prompt_text(None, history(8))
    short = limited(tokens + 4, Window(tokens - 1), room=5)
    assert len(short.encode(short.prompt_text(None, history(8)))) < tokens


def test_a_window_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Window(0)
