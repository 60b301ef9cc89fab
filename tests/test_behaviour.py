"""How much of what was once done the policy would still do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lightning_iterppo.behaviour import action_log_ratios, action_logprobs
from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.models.language_model import POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer

Make = Callable[..., LanguageModel]
Stir = Callable[..., None]
COLOURS = ["red", "blue", "?", "yes", "no"]
PEOPLE = [
    Conversation("a", (Turn("red ?", "no"), Turn("blue ?", "yes yes"))),
    Conversation("b", (Turn("blue ?", "no"),)),
]


@pytest.fixture(params=["full", "lora"])
def model(make_language_model: Make, stir: Stir, request: pytest.FixtureRequest) -> LanguageModel:
    """A policy that has gone some way from the reference."""
    made = make_language_model(request.param, vocabulary=COLOURS, hidden=16, layers=1)
    made.copy(POLICY, REFERENCE)
    stir(made, POLICY, scale=0.3)
    return made


def plain(model: LanguageModel, prompt: list[int], response: list[int]) -> float:
    """The log-probability of a response in a row of its own."""
    table = model.causal_lm(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return float(table[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None]).sum())


@torch.no_grad()
def test_log_probabilities_are_those_of_plain_passes(model: LanguageModel) -> None:
    renderer = ChatRenderer(model.tokenizer)
    rendered = [renderer.render(conversation) for conversation in PEOPLE]
    for variant in (POLICY, REFERENCE):
        found = action_logprobs(model, [item.tree for item in rendered], variant, rows=1)
        with model.using(variant):
            for item, values in zip(rendered, found, strict=True):
                for state, action, value in zip(item.states, item.actions, values, strict=True):
                    response = list(item.tree.segments[action].token_ids)
                    assert value == pytest.approx(plain(model, item.tree.path(state), response), abs=1e-4)
    assert model.active == POLICY


def test_people_are_taken_for_the_policy_that_imitates_them(model: LanguageModel) -> None:
    renderer = ChatRenderer(model.tokenizer)
    trees = [renderer.render(conversation).tree for conversation in PEOPLE]
    own, other = (action_logprobs(model, trees, variant, rows=8) for variant in (POLICY, REFERENCE))
    found = action_log_ratios(model, renderer, PEOPLE)
    expected = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(own, other, strict=True)]
    assert [found["a"], found["b"]] == [pytest.approx(values, abs=1e-5) for values in expected]
    assert min(abs(value) for values in expected for value in values) > 1e-3
    model.copy(POLICY, REFERENCE)  # a policy that still is what imitated them would do what they did
    assert action_log_ratios(model, renderer, PEOPLE) == {"a": [0.0, 0.0], "b": [0.0]}


def test_a_policys_own_log_probabilities_are_what_it_is_compared_to(model: LanguageModel) -> None:
    renderer = ChatRenderer(model.tokenizer)
    (own,) = action_logprobs(model, [renderer.render(PEOPLE[1]).tree], POLICY, rows=8)
    (turn,) = PEOPLE[1].turns
    tokens = tuple(renderer.response_ids(turn.message))
    for shift in (-1.0, 0.5):
        kept = tuple((own[0] + shift) / len(tokens) for _ in tokens)
        said = replace(turn, suggestion=Suggestion(turn.message, tokens, kept), disposition="accepted")
        found = action_log_ratios(model, renderer, [replace(PEOPLE[1], turns=(said,))])
        assert found["b"] == pytest.approx([-shift], abs=1e-5)


def test_nobody_elses_conversations(model: LanguageModel) -> None:
    assert action_log_ratios(model, ChatRenderer(model.tokenizer), []) == {}
