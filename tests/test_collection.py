"""Conversations between a policy and customers: prompts, turns, rewards, and customers that break their protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lightning_iterppo.collection import Failure, collect
from lightning_iterppo.conversation import Conversation, Message
from lightning_iterppo.customers import CustomerReply, Sent
from lightning_iterppo.errors import CustomerError
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer
from lightning_iterppo.talk import MAX_TURNS

WORDS = ["hello", "hat", "red", "blue", "?", "yes", "no"]


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(make_scratch_tokenizer(WORDS))


class Parrot:
    """An engine that says a fixed text, cut or ended, and remembers what it was asked."""

    def __init__(self, renderer: ChatRenderer, text: str = "red hat", *, finished: bool = True) -> None:
        ids = (*renderer.encode(text), *([renderer.stop_token_id] if finished else []))
        self.response = Response(ids, tuple(-0.5 for _ in ids), finished)
        self.asked: list[list[list[int]]] = []
        self.generated_tokens = 0

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Any = None) -> list[Response]:
        self.asked.append([list(prompt) for prompt in prompts])
        return [self.response] * len(prompts)


class Seeded(Parrot):
    """Remembers the seeds, too."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Any = None) -> list[Response]:
        self.seeds = [*getattr(self, "seeds", []), list(seeds)]
        return super().generate(prompts, sampling)


class Counting:
    """Ends after as many turns as its seed says, and remembers its histories."""

    system = "sell"
    heard: list[list[Message]]

    def reset(self, seed: int) -> str:
        self.turns, self.heard = seed, []
        return "hello"

    def reply(self, history: list[Message]) -> CustomerReply:
        self.heard.append(list(history))
        history.clear()  # the list is the customer's own
        done = len(self.heard) == self.turns
        return CustomerReply("yes" if done else "no", reward=len(self.heard) / 64, done=done)


def talk(renderer: ChatRenderer, engine: Any, customer: Any, seeds: Sequence[int], **more: Any) -> list[Conversation]:
    return collect(
        customer,
        seeds,
        engine=engine,
        renderer=renderer,
        sampling=Sampling(),
        policy_version="iteration-004",
        prefix="run",
        **more,
    )


def test_a_suggestion_has_the_seed_of_its_phase_its_customer_and_its_turn(renderer: ChatRenderer) -> None:
    """And not of who else talks beside it."""
    together, alone, apart, other = (Seeded(renderer) for _ in range(4))
    talk(renderer, together, Counting, [3, 2, 4], seed=7)
    talk(renderer, alone, Counting, [4], seed=7)
    talk(renderer, apart, Counting, [3, 2, 4], seed=7, batch=1)
    talk(renderer, other, Counting, [4], seed=8)
    assert [len(seeds) for seeds in together.seeds] == [3, 3, 2, 1]
    assert [seeds[-1] for seeds in together.seeds] == [seed for (seed,) in alone.seeds]
    every = [seed for seeds in together.seeds for seed in seeds]
    assert sorted(seed for (seed,) in apart.seeds) == sorted(every)
    assert len({*every, *(seed for (seed,) in other.seeds)}) == 9 + 4


def test_failures_are_a_share_of_everybodys_conversations(renderer: ChatRenderer) -> None:
    class Dropping(Counting):
        def reset(self, seed: int) -> str:
            if seed == 2:
                raise ConnectionError("hung up")
            return super().reset(seed)

    lost: list[Failure] = []
    more: dict[str, Any] = {"failed_share": 0.1, "on_failure": lost.append}
    with pytest.raises(CustomerError, match="hung up"):
        talk(renderer, Parrot(renderer), Dropping, [1, 2, 3], **more)
    talk(renderer, Parrot(renderer), Dropping, [1, 2, 3], among=12, **more)
    assert [failure.seed for failure in lost] == [2]


def test_a_conversation_holds_what_was_said_and_earned(renderer: ChatRenderer) -> None:
    engine = Parrot(renderer)
    customers: list[Counting] = []

    def make() -> Counting:
        customers.append(Counting())
        return customers[-1]

    one, two = talk(renderer, engine, make, [1, 2])
    assert (one.id, two.id, two.seed, two.policy_version, two.system) == ("run-1", "run-2", 2, "iteration-004", "sell")
    assert [(t.customer, t.message, t.disposition, t.reward) for t in two.turns] == [
        ("hello", "red hat", "accepted", 1 / 64),
        ("no", "red hat", "accepted", 2 / 64),
    ]
    assert (two.closing, two.outcome, one.outcome) == ("yes", 3 / 64, 1 / 64)
    suggestion = two.turns[1].suggestion
    assert suggestion is not None
    assert (suggestion.token_ids, suggestion.logprobs) == (engine.response.token_ids, engine.response.logprobs)
    assert (suggestion.text, suggestion.policy_version) == ("red hat", "iteration-004")
    assert customers[1].heard[1] == [
        Message("customer", "hello"),
        Message("agent", "red hat"),
        Message("customer", "no"),
        Message("agent", "red hat"),
    ]


@pytest.mark.parametrize("finished", [True, False])
def test_the_next_prompt_is_the_last_one_its_response_and_the_customer(renderer: ChatRenderer, finished: bool) -> None:
    engine = Parrot(renderer, finished=finished)
    (made,) = talk(renderer, engine, Counting, [3])
    prompts = [asked[0] for asked in engine.asked]
    for turn, prompt in enumerate(prompts):
        assert prompt == renderer.encode(renderer.prompt_text("sell", made.messages[: 2 * turn + 1]))
        if turn:
            before = [*prompts[turn - 1], *engine.response.token_ids]
            assert prompt[: len(before)] == before
    # The states of the logged conversation are the very prompts.
    rendered = renderer.render(made)
    assert [rendered.tree.path(state) for state in rendered.states] == prompts


def test_a_conversation_that_ends_makes_room_for_the_next(renderer: ChatRenderer) -> None:
    engine = Parrot(renderer)
    progress: list[int] = []
    found = talk(renderer, engine, Counting, [3, 1, 2, 1, 2], batch=3, on_progress=progress.append)
    assert [conversation.seed for conversation in found] == [3, 1, 2, 1, 2]
    assert [len(conversation.turns) for conversation in found] == [3, 1, 2, 1, 2]
    # The batch is full while there are seeds, and who has finished is not asked any more.
    assert [len(asked) for asked in engine.asked] == [3, 3, 2, 1]
    assert progress == [1, 3, 4, 5]
    # The others stay in their places, so that an engine that keeps them has nothing to move.
    first, second = engine.asked[:2]
    assert [prompt[: len(before)] == before for before, prompt in zip(first, second, strict=True)] == [True] * 3
    assert [len(prompt) > len(before) for before, prompt in zip(first, second, strict=True)] == [True, False, True]


def test_a_template_that_rewrites_the_past_gets_whole_prompts() -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    tokenizer.chat_template = "{{ 'red ' * (messages | length) }}{% for m in messages %}{{ m.content }} {% endfor %}"
    renderer = ChatRenderer(tokenizer)
    engine = Parrot(renderer)
    (made,) = talk(renderer, engine, Counting, [2])
    assert engine.asked[1][0] == renderer.encode(renderer.prompt_text("sell", made.messages[:3]))


def test_a_kept_engine_speaks_as_the_model_would(make_language_model: Callable[..., LanguageModel]) -> None:
    """The whole path with a real engine: every logged log-probability is that of the logged tokens in their state."""
    import torch

    from lightning_iterppo.models.logprobs import response_logprobs
    from lightning_iterppo.models.tree import collate_trees

    model = make_language_model()
    renderer = ChatRenderer(model.tokenizer)
    engine = LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=0, keep=True)
    found = talk(renderer, engine, Counting, [1, 2, 3, 3])
    batch = collate_trees([renderer.render(conversation).tree for conversation in found], renderer.pad_token_id)
    with torch.no_grad():
        logprobs = response_logprobs(model.hidden(batch), batch, model.logits)[0]
    logged = [turn.suggestion.logprobs for talk in found for turn in talk.turns if turn.suggestion is not None]
    assert len(logged) == 9
    for row, expected in zip(logprobs, logged, strict=True):
        assert row[: len(expected)].tolist() == pytest.approx(list(expected), abs=1e-5)


def test_a_kept_engine_holds_no_more_than_the_conversations_that_go_on(
    make_language_model: Callable[..., LanguageModel],
) -> None:
    model = make_language_model()
    renderer = ChatRenderer(model.tokenizer)
    engine = LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=0, keep=True)
    attended: list[tuple[int, int]] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: attended.append(
            (kwargs["attention_mask"].shape[0], kwargs["attention_mask"].shape[-1])
        ),
        with_kwargs=True,
    )
    found = talk(renderer, engine, Counting, [1 + seed % 5 for seed in range(200)], batch=8)
    lengths = [len(renderer.render(conversation).tree) for conversation in found]
    assert len(found) == 200 and max(lengths) < 200
    assert max(rows for rows, _ in attended) == 8
    assert max(slots for _, slots in attended) <= max(lengths) + 8  # and what fills up the reading of the newest text


# -- a person before the customer ------------------------------------------------------------------------------------


class Supervised(Counting):
    """Behind a person who lets the first suggestion pass, edits the second and rejects the third."""

    def review(self, history: list[Message]) -> Sent:
        suggested = history[-1].content
        found = [Sent(suggested), Sent("blue hat", "edited"), Sent("hello ?", "rejected")][len(self.heard)]
        history.clear()  # the list is the customer's own
        return found


@pytest.mark.parametrize("finished", [True, False])
def test_what_a_person_sends_is_heard_and_what_was_suggested_is_the_action(
    renderer: ChatRenderer, finished: bool
) -> None:
    engine = Parrot(renderer, finished=finished)
    customers: list[Supervised] = []

    def make() -> Supervised:
        customers.append(Supervised())
        return customers[-1]

    (made,) = talk(renderer, engine, make, [3])
    assert [(t.message, t.disposition) for t in made.turns] == [
        ("red hat", "accepted"),
        ("blue hat", "edited"),
        ("hello ?", "rejected"),
    ]
    assert all(t.suggestion is not None and t.suggestion.text == "red hat" for t in made.turns)
    assert [m.content for m in customers[0].heard[2]] == ["hello", "red hat", "no", "blue hat", "no", "hello ?"]
    # What the policy was asked is what training takes for its states: the suggestion is a branch, not the history.
    rendered = renderer.render(made)
    assert [rendered.tree.path(state) for state in rendered.states] == [asked[0] for asked in engine.asked]
    assert [rendered.tree.segments[action].token_ids for action in rendered.actions] == [engine.response.token_ids] * 3


# -- customers that break their protocol -----------------------------------------------------------------------------


class NoOpening(Counting):
    def reset(self, seed: int) -> Any:
        return None


class NoReply(Counting):
    def reply(self, history: list[Message]) -> Any:
        return "fine"


class Endless(Counting):
    def reply(self, history: list[Message]) -> CustomerReply:
        return CustomerReply("no")


class Broken(Counting):
    def reply(self, history: list[Message]) -> CustomerReply:
        raise KeyError("hat")


class Meddling(Counting):
    sent: Any

    def review(self, history: list[Message]) -> Any:
        return self.sent


class Silently(Meddling):
    sent = Sent("blue hat")


class Unsaid(Meddling):
    sent = Sent("blue hat", "unassisted")


class Texting(Meddling):
    sent = "blue hat"


class Paying(Counting):
    reward: float

    def reply(self, history: list[Message]) -> CustomerReply:
        return CustomerReply("no", reward=self.reward)


class Generous(Paying):
    reward = 0.75


class Punishing(Paying):
    reward = -0.5


class Wordless(Counting):
    def reply(self, history: list[Message]) -> CustomerReply:
        return CustomerReply(None)  # type: ignore[arg-type]


class Undefined(Paying):
    reward = float("nan")


@pytest.mark.parametrize(
    ("customer", "message"),
    [
        (Broken, r"customer Broken \(seed 7\): reply raised KeyError: 'hat' \(.*test_collection\.py:\d+\)"),
        (Generous, r"customer Generous \(seed 7\): the rewards .* found 0\.75 for turn 2, 1\.5 in all"),
        (Punishing, r"customer Punishing \(seed 7\): the rewards .* found -0\.5 for turn 1"),
        (Undefined, r"customer Undefined \(seed 7\): the reward must be a finite number, found nan"),
        (Silently, r"customer Silently \(seed 7\): review must .* found 'accepted' with 'blue hat' for 'red hat'"),
        (Unsaid, r"customer Unsaid \(seed 7\): review must .* found 'unassisted'"),
        (Texting, r"customer Texting \(seed 7\): review must return Sent, found str"),
        (NoOpening, r"customer NoOpening \(seed 7\): reset must return str, found NoneType"),
        (NoReply, r"customer NoReply \(seed 7\): reply must return CustomerReply, found str"),
        (Wordless, r"customer Wordless \(seed 7\): the text of a reply must be str, found NoneType"),
        (Endless, rf"customer Endless \(seed 7\) did not end after {MAX_TURNS} turns"),
    ],
)
def test_the_customer_is_named_with_its_seed(renderer: ChatRenderer, customer: Any, message: str) -> None:
    with pytest.raises(CustomerError, match=message):
        talk(renderer, Parrot(renderer), customer, [7])


def test_amounts_may_be_of_any_size_and_sign(renderer: ChatRenderer) -> None:
    class Trading(Counting):
        def reply(self, history: list[Message]) -> CustomerReply:
            paid = len(history) > 2
            return CustomerReply("yes", reward=250.0 if paid else -2.0, done=paid)

    (made,) = talk(renderer, Parrot(renderer), Trading, [7], events=False)
    assert [turn.reward for turn in made.turns] == [-2.0, 250.0] and made.outcome == 248.0
    with pytest.raises(CustomerError, match=r"found -2 for turn 1.* or fit amounts with critic\.loss=mse"):
        talk(renderer, Parrot(renderer), Trading, [7])


def test_an_empty_opening_lets_the_agent_speak_first(renderer: ChatRenderer) -> None:
    class Silent(Counting):
        def reset(self, seed: int) -> str:
            super().reset(seed)
            return ""

    engine = Parrot(renderer)
    (made,) = talk(renderer, engine, Silent, [1])
    assert made.turns[0].customer == ""
    assert made.messages == [Message("agent", "red hat"), Message("customer", "yes")]
    assert engine.asked[0][0] == renderer.encode(renderer.prompt_text("sell", []))


# -- customers that fail now and then --------------------------------------------------------------------------------


class Unreliable(Counting):
    """Breaks off at its second turn where the seed is even, and does not open at all where it is 9."""

    def reset(self, seed: int) -> str:
        if seed == 9:
            raise OSError("no connection")
        self.seed = seed
        return super().reset(seed)

    def reply(self, history: list[Message]) -> CustomerReply:
        if self.seed % 2 == 0 and len(self.heard) == 1:
            raise OSError("hung up")
        return super().reply(history)


def test_a_conversation_that_fails_is_left_out_and_told(renderer: ChatRenderer) -> None:
    failures: list[Failure] = []
    over: list[int] = []
    found = talk(
        renderer,
        Parrot(renderer),
        Unreliable,
        [3, 2, 1, 9, 5],
        batch=2,
        failed_share=0.4,
        on_failure=failures.append,
        on_progress=over.append,
    )
    assert [(c.seed, len(c.turns)) for c in found] == [(3, 3), (1, 1), (5, 5)]
    assert [failure.seed for failure in failures] == [2, 9]
    assert "customer Unreliable (seed 2): reply raised OSError: hung up" in failures[0].error
    assert "customer Unreliable (seed 9): reset raised OSError: no connection" in failures[1].error
    assert over[-1] == 5


def test_one_failure_too_many_stops(renderer: ChatRenderer) -> None:
    message = r"Unreliable \(seed 4\): .* hung up .*; 2 of 4 failed, and loop\.failed_share=0\.3 allows 1"
    with pytest.raises(CustomerError, match=message):
        talk(renderer, Parrot(renderer), Unreliable, [3, 2, 4, 1], batch=1, failed_share=0.3)


# -- customers that wait for something -------------------------------------------------------------------------------


class Meeting:
    """Answers when all of the batch have been asked: together, or never."""

    def __init__(self, guests: int) -> None:
        self.guests, self.asked, self.all = guests, 0, asyncio.Event()

    async def come(self) -> None:
        self.asked += 1
        if self.asked == self.guests:
            self.all.set()
        await self.all.wait()


class Slow(Counting):
    """The asynchronous form of Counting, whose first answers wait for each other."""

    meeting: Meeting

    async def reset(self, seed: int) -> str:  # type: ignore[override]
        return super().reset(seed)

    async def reply(self, history: list[Message]) -> CustomerReply:  # type: ignore[override]
        if not self.heard:
            await self.meeting.come()
        return super().reply(history)


def test_customers_that_wait_are_asked_at_once_and_say_the_same(renderer: ChatRenderer) -> None:
    Slow.meeting = Meeting(3)
    found = talk(renderer, Parrot(renderer), Slow, [3, 1, 2], timeout=20)
    assert found == talk(renderer, Parrot(renderer), Counting, [3, 1, 2])


def test_they_are_asked_where_an_event_loop_runs_already(renderer: ChatRenderer) -> None:
    async def notebook() -> list[Conversation]:
        return talk(renderer, Parrot(renderer), Slow, [2])

    Slow.meeting = Meeting(1)
    assert [c.seed for c in asyncio.run(notebook())] == [2]


def test_who_takes_too_long_has_failed_and_the_others_go_on(renderer: ChatRenderer) -> None:
    class Stuck(Slow):
        async def reply(self, history: list[Message]) -> CustomerReply:  # type: ignore[override]
            if self.turns == 2:
                await asyncio.Event().wait()
            return Counting.reply(self, history)

    failures: list[Failure] = []
    found = talk(
        renderer, Parrot(renderer), Stuck, [1, 2, 3], timeout=0.05, failed_share=0.4, on_failure=failures.append
    )
    assert [c.seed for c in found] == [1, 3]
    assert [f.error for f in failures] == [
        "customer Stuck (seed 2): reply took more than 0.05 s (loop.customer_timeout)"
    ]


def test_its_own_time_out_is_its_own(renderer: ChatRenderer) -> None:
    class Impatient(Slow):
        async def reply(self, history: list[Message]) -> CustomerReply:  # type: ignore[override]
            raise TimeoutError("the server did not answer")

    with pytest.raises(CustomerError, match="reply raised TimeoutError: the server did not answer"):
        talk(renderer, Parrot(renderer), Impatient, [1], timeout=20)


def test_who_returns_something_to_wait_for_must_say_so(renderer: ChatRenderer) -> None:
    async def later() -> CustomerReply:
        return CustomerReply("yes", done=True)

    class Unclear(Counting):
        def reply(self, history: list[Message]) -> Any:
            return later()

    with pytest.raises(CustomerError, match=r"reply returned something to wait for: write it as async def"):
        talk(renderer, Parrot(renderer), Unclear, [1])


def test_nothing_is_left_waiting_after_an_interruption(renderer: ChatRenderer) -> None:
    class Interrupted(Parrot):
        def generate(
            self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Any = None
        ) -> list[Response]:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        talk(renderer, Interrupted(renderer), Slow, [1, 2])
    assert threading.active_count() == before
