"""RoundDataModule: which states, which responses, and where each reward and baseline comes from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lightning_iterppo.conversation import Conversation, Message, Suggestion, Turn
from lightning_iterppo.data.samples import PreparedTree, ScoredTree
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.improvement import MEASURED, RoundDataModule, RoundState, score_each
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.policy import PPOPolicy

Make = Callable[..., LanguageModel]
COLOURS = ["red", "blue", "?", "yes", "no"]


class Recording(PPOPolicy):
    """Keeps what it is given to prepare."""

    def prepare(self, trees: Sequence[ScoredTree], **more: Any) -> list[PreparedTree]:
        self.given, self.asked = list(trees), more
        return super().prepare(trees, **more)


class Scripted:
    """Says one word after another, each ended, and remembers what it was asked."""

    def __init__(self, renderer: ChatRenderer, seed: int) -> None:
        self.renderer, self.seed = renderer, seed
        self.asked: list[list[int]] = []
        self.sampling: Sampling | None = None

    @property
    def generated_tokens(self) -> int:
        return 2 * len(self.asked)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Any = None) -> list[Response]:
        self.asked, self.sampling = [list(prompt) for prompt in prompts], sampling
        words = [COLOURS[(self.seed + number) % 5] for number in range(len(prompts))]
        return [Response(tuple(self.renderer.response_ids(word)), (-1.0, -1.0), True) for word in words]


class Round:
    """A data module with a scripted engine, a scorer that counts up by 0.1, and all it was told."""

    def __init__(self, make: Make, conversations: Sequence[Conversation], **more: Any) -> None:
        model = make("full", vocabulary=COLOURS, hidden=16, layers=1)
        self.renderer = ChatRenderer(model.tokenizer)
        self.policy = Recording(model, whiten=False)
        self.engines: list[Scripted] = []
        self.states: list[RoundState] = []
        self.values: list[list[float]] = []
        self.stages: list[tuple[str, int]] = []
        self.data = RoundDataModule(
            self.policy,
            conversations,
            self.score,
            engine=self.engine,
            renderer=self.renderer,
            on_stage=lambda stage, total: self.stages.append((stage, total)),
            **more,
        )

    def engine(self, seed: int) -> Scripted:
        self.engines.append(Scripted(self.renderer, seed))
        return self.engines[-1]

    def score(self, states: Sequence[RoundState]) -> list[list[float]]:
        self.states = list(states)
        numbers = iter(range(1000))
        self.values = [[0.1 * next(numbers) for _ in state.turns] for state in states]
        return self.values


def talk(name: str = "a", outcome: float | None = 1.0) -> Conversation:
    said = Turn("red ?", "no", Suggestion("no"), "accepted")
    return Conversation(
        name, (said, Turn("blue ?", "yes", Suggestion("yes"), "accepted", outcome or 0.0)), outcome=outcome
    )


def test_every_state_gets_fresh_responses(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=3, max_new_tokens=7)
    round_.data.train_dataloader()
    rendered = round_.renderer.render(talk())
    assert round_.engines[0].asked == [rendered.tree.path(state) for state in rendered.states for _ in range(3)]
    # Exact log-probabilities, whatever conversations are sampled with.
    assert round_.engines[0].sampling == Sampling(temperature=1.0, top_p=1.0, max_new_tokens=7)
    (state,) = round_.states
    assert state.turns == [0, 0, 0, 1, 1, 1]
    assert state.fresh == [True] * 6
    assert len(state.tree.actions) == 6
    parents = [state.tree.segments[action].parent for action in state.tree.actions]
    assert parents == [rendered.states[0]] * 3 + [rendered.states[1]] * 3
    assert round_.data.generated_tokens == 12


def test_a_state_tells_its_history_and_responses_in_text(make_language_model: Make) -> None:
    conversation = Conversation(
        "a",
        (Turn("red ?", "no", Suggestion("blue"), "edited"), Turn("blue ?", "yes", Suggestion("yes"), "accepted")),
        outcome=0.0,
    )
    round_ = Round(make_language_model, [conversation], samples_per_state=1, logged_reward="return")
    round_.data.train_dataloader()
    (state,) = round_.states
    assert (state.turns, state.fresh) == ([0, 1, 0, 1], [False, False, True, True])
    first = round_.engines[0].seed % 5
    words = [COLOURS[first], COLOURS[(first + 1) % 5]]
    assert [state.response(action) for action in range(4)] == ["blue", "yes", *words]
    assert state.history(2) == [Message("customer", "red ?")]
    # What was sent is the history, not what was suggested.
    assert state.history(3) == [Message("customer", "red ?"), Message("agent", "no"), Message("customer", "blue ?")]
    seen: list[tuple[list[Message], str]] = []
    scores = score_each(lambda history, response: float(len(seen)) if seen.append((history, response)) else 0.5)(
        [state]
    )
    assert scores == [[0.5] * 4]
    assert seen[3] == (state.history(3), words[1])


@pytest.mark.parametrize(
    ("word", "rewards"),
    [
        # Two logged actions (values 0.0 and 0.1, observed returns 1.0 each), then fresh ones with values 0.2 … 0.5
        ("none", [0.0, 0.1, 0.2, 0.3]),
        ("q", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("return", [1.0, 1.0, 0.2, 0.3, 0.4, 0.5]),
        ("mix", [0.5, 0.55, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_where_a_reward_comes_from(make_language_model: Make, word: Any, rewards: list[float]) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=2, logged_reward=word)
    round_.data.train_dataloader()
    (item,) = round_.policy.given
    assert item.rewards == pytest.approx(rewards)
    assert item.fresh == [False] * (len(rewards) - 4) + [True] * 4
    # The baseline of a response is the mean value of the other responses to its state.
    values, turns = round_.values[0], round_.states[0].turns
    for number, turn in enumerate(turns):
        others = [v for n, v in enumerate(values) if turns[n] == turn and n != number]
        assert item.baselines[number] == pytest.approx(sum(others) / len(others))


def test_a_discounted_return_is_that_of_its_turn(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=1, logged_reward="return", gamma=0.5)
    round_.data.train_dataloader()
    assert round_.policy.given[0].rewards[:2] == [0.5, 1.0]


def test_with_lambda_below_one_the_next_state_stands_in_for_what_came_later(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=2, logged_reward="return", logged_lambda=0.0)
    round_.data.train_dataloader()
    # The second state's responses are worth 0.1 (logged), 0.4 and 0.5; the reward comes at the very end.
    assert round_.policy.given[0].rewards[:2] == pytest.approx([1 / 3, 1.0])
    halfway = Round(make_language_model, [talk()], samples_per_state=2, logged_reward="return", logged_lambda=0.5)
    halfway.data.train_dataloader()
    assert halfway.policy.given[0].rewards[:2] == pytest.approx([0.5 / 3 + 0.5 * 1.0, 1.0])


def test_a_trace_cuts_what_another_policys_actions_led_to(make_language_model: Make) -> None:
    more = {"samples_per_state": 2, "logged_reward": "return"}
    round_ = Round(make_language_model, [talk("old")], log_ratios={"old": [1.0, math.log(0.25)]}, **more)
    round_.data.train_dataloader()
    (given,) = round_.policy.given
    assert given.rewards[:2] == pytest.approx([0.75 / 3 + 0.25 * 1.0, 1.0])
    assert given.log_ratios == [1.0, math.log(0.25), 0.0, 0.0, 0.0, 0.0]


def test_a_lone_response_has_no_baseline(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=1)
    round_.data.train_dataloader()
    assert round_.policy.given[0].baselines == [0.0, 0.0]


@pytest.mark.parametrize("word", ["return", "mix", "q"])
def test_what_people_wrote_by_themselves_is_no_action_of_a_policy(make_language_model: Make, word: Any) -> None:
    suggested = talk().turns[1]
    mixed = Conversation("a", (Turn("red ?", "no"), suggested), outcome=1.0)
    round_ = Round(make_language_model, [mixed], samples_per_state=1, logged_reward=word)
    round_.data.train_dataloader()
    (state,) = round_.states
    # Both turns' states are prompts; only the second has a logged action.
    assert (state.turns, state.fresh) == ([1, 0, 1], [False, True, True])
    assert next(state.response(action) for action in range(3)) == "yes"
    assert [len(state.tree.segments[a].token_ids) for a in state.tree.actions] == [2, 2, 2]


def test_what_people_wrote_may_count_where_it_is_asked_for(make_language_model: Make) -> None:
    mixed = Conversation("a", (Turn("red ?", "no"), talk().turns[1]), outcome=1.0)
    more = {"samples_per_state": 1, "logged_reward": "return", "log_actions": True}
    round_ = Round(make_language_model, [mixed], **more)
    round_.data.train_dataloader()
    (state,) = round_.states
    assert (state.turns, state.fresh) == ([0, 1, 0, 1], [False, False, True, True])
    assert [state.response(action) for action in range(2)] == ["no", "yes"]
    # The return of a conversation's first turn is its reward from there on.
    assert round_.policy.given[0].rewards[:2] == mixed.returns()


@pytest.mark.parametrize("word", ["return", "mix"])
def test_what_is_not_known_to_be_earned_is_no_reward(make_language_model: Make, word: Any) -> None:
    round_ = Round(make_language_model, [talk("a", None), talk("b")], samples_per_state=1, logged_reward=word)
    round_.data.train_dataloader()
    fresh = {state.conversation.id: state.fresh for state in round_.states}
    # The states of a censored conversation are prompts all the same.
    assert fresh == {"a": [True, True], "b": [False, False, True, True]}
    by_values = Round(make_language_model, [talk("a", None)], samples_per_state=1, logged_reward="q")
    by_values.data.train_dataloader()
    assert by_values.states[0].fresh == [False, False, True, True]


def test_rounds_go_through_all_conversations_before_one_comes_again(make_language_model: Make) -> None:
    conversations = [talk(str(number)) for number in range(6)]
    round_ = Round(make_language_model, conversations, samples_per_state=1, conversations_per_round=2, seed=3)
    used: list[list[str]] = []
    for _ in range(6):
        round_.data.train_dataloader()
        used.append([state.conversation.id for state in round_.states])
    assert Counter(name for names in used[:3] for name in names) == dict.fromkeys("012345", 1)
    assert used[3:] == used[:3]
    assert used[0] != ["0", "1"] or used[1] != ["2", "3"]  # in a shuffled order
    # Every round has its own randomness, and so has every seed.
    assert len({engine.seed for engine in round_.engines}) == 6
    other = Round(make_language_model, conversations, samples_per_state=1, conversations_per_round=2, seed=4)
    other.data.train_dataloader()
    assert other.engines[0].seed not in {engine.seed for engine in round_.engines}


def test_more_conversations_than_there_are(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk("a"), talk("b")], samples_per_state=1, conversations_per_round=64)
    loader = round_.data.train_dataloader()
    assert len(round_.states) == 2
    assert len(loader) == 2  # one batch, gone through twice


def test_a_round_is_gone_through_as_often_as_asked(make_language_model: Make) -> None:
    conversations = [talk(str(number)) for number in range(5)]
    round_ = Round(make_language_model, conversations, samples_per_state=1, ppo_epochs=3, batch_size=2)
    batches = list(round_.data.train_dataloader())
    assert len(batches) == 9
    seen = Counter(id(tree) for batch in batches for tree in batch.tree.trees)
    assert sorted(seen.values()) == [3] * 5
    for batch in batches:
        shape = batch.tree.action_mask.shape
        assert batch.advantages.shape == batch.old_logprobs.shape == batch.returns.shape == shape
        assert (batch.advantages[~batch.tree.action_mask] == 0).all()


def test_stages_are_announced_in_order(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk("a"), talk("b")], samples_per_state=2)
    round_.data.train_dataloader()
    assert round_.stages == [("sample", 8), ("score", 2), ("prepare", 2), ("train", 2)]


def test_only_the_first_round_is_at_the_anchor(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=1)
    for expected in (True, False):
        round_.data.train_dataloader()
        assert round_.policy.asked["at_anchor"] is expected


def test_the_gain_is_against_the_first_round(make_language_model: Make) -> None:
    round_ = Round(make_language_model, [talk()], samples_per_state=2)
    round_.data.train_dataloader()
    assert round_.policy.figures["reward_gain"] == 0.0
    first = round_.policy.figures["reward_mean"]
    round_.data.score = lambda states: [[0.9] * len(state.turns) for state in states]
    round_.data.train_dataloader()
    assert first is not None
    assert round_.policy.figures["reward_gain"] == pytest.approx(0.9 - first)


def test_the_end_is_measured_in_the_states_of_the_first_round(make_language_model: Make) -> None:
    round_ = Round(
        make_language_model, [talk(str(n)) for n in range(6)], samples_per_state=2, conversations_per_round=2,
        logged_reward="return",
    )  # fmt: skip
    groups: list[list[str]] = []

    def score(states: Sequence[RoundState]) -> list[list[float]]:
        groups.append([state.conversation.id for state in states])
        return [[float(len(groups))] * len(state.turns) for state in states]

    round_.data.score = score
    for _ in range(3):
        round_.data.train_dataloader()
    round_.data.measure()
    assert groups[3] == groups[0] != groups[2]
    assert round_.policy.asked["at_anchor"] is False
    assert round_.policy.figures["reward_gain"] == 3.0
    assert all(all(tree.fresh) for tree in round_.policy.given)


def test_the_end_is_measured_in_some_states_and_against_the_same_ones(make_language_model: Make) -> None:
    talks = [talk(str(n)) for n in range(MEASURED + 4)]
    round_ = Round(make_language_model, talks, samples_per_state=1, conversations_per_round=len(talks))
    met: list[list[str]] = []

    def score(states: Sequence[RoundState]) -> list[list[float]]:
        met.append([state.conversation.id for state in states])
        # Only what is measured in the end starts at 0.2; at the end everything is worth 0.5.
        return [[0.5 if len(met) > 1 else 0.2 if n < MEASURED else 0.9] * len(s.turns) for n, s in enumerate(states)]

    round_.data.score = score
    round_.data.train_dataloader()
    round_.data.measure()
    assert met[1] == met[0][:MEASURED]
    assert round_.policy.figures["reward_gain"] == pytest.approx(0.3)


def test_an_improvement_of_nothing(make_language_model: Make) -> None:
    with pytest.raises(ValueError, match="needs logged conversations"):
        Round(make_language_model, [])


def test_the_logged_tree_is_not_changed(make_language_model: Make) -> None:
    """A round's responses must not pile up on one another."""
    round_ = Round(make_language_model, [talk()], samples_per_state=2)
    for _ in range(2):
        round_.data.train_dataloader()
        assert len(round_.states[0].tree.actions) == 4
    assert torch.isfinite(torch.tensor(round_.policy.figures["entropy"] or 0.0))
