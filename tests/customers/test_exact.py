"""The exact customer: what it does is what `theory` enumerates."""

from __future__ import annotations

import math
import random

import pytest
import torch

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import Customer
from lightning_iterppo.customers.exact import WORDS, ExactCustomer, random_logs, response_of, state_word, vocabulary
from lightning_iterppo.theory import evaluate, of_histories, optimum, outcome_problem


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("", (0,)),
        ("red", (1, 0)),
        ("blue red", (2, 1)),
        ("blue red red", (2, 1)),
        ("a0 red", (0,)),
        ("red a0", (1, 0)),
        ("red gold", (1, 0)),
    ],
)
def test_a_message_is_its_words_up_to_the_first_unknown(text: str, response: tuple[int, ...]) -> None:
    assert response_of(text, tokens=3, length=2) == response


def test_the_outcome_rate_of_random_logs_is_the_exact_value_of_the_random_policy() -> None:
    for number in range(3):
        problem = outcome_problem(number)
        uniform = torch.full_like(problem.reward, 1 / problem.reward.shape[-1])
        exact = float(problem.start @ evaluate(problem, uniform).v[0])
        logs = random_logs(2000, seed=1, problem=number)
        rate = sum(c.outcome or 0 for c in logs) / len(logs)
        assert abs(rate - exact) < 4 * math.sqrt(exact * (1 - exact) / len(logs))


def test_an_agent_that_takes_the_best_response_gets_the_optimum() -> None:
    customer = ExactCustomer(5)
    problem = customer.problem
    assert isinstance(customer, Customer)
    best = optimum(problem)
    paid, count = 0.0, 2000
    for seed in range(count):
        heard = customer.reset(seed)
        while True:
            turn, state = "ab".index(heard[0]), int(heard[1])
            response = problem.tree.responses[int(best.q[turn, state].argmax())]
            reply = customer.reply([Message("agent", " ".join(WORDS[k - 1] for k in response if k))])
            paid += reply.reward
            heard = reply.text
            if reply.done:
                break
    exact = float(problem.start @ best.v[0])
    assert abs(paid / count - exact) < 4 * math.sqrt(exact * (1 - exact) / count)


def test_the_same_seed_is_the_same_customer() -> None:
    def talk() -> list[str]:
        customer, rng = ExactCustomer(3), random.Random(0)
        heard = [customer.reset(9)]
        while True:
            reply = customer.reply([Message("agent", rng.choice(WORDS))])
            heard.append(reply.text)
            if reply.done:
                return heard

    assert talk() == talk()
    assert random_logs(20, seed=2) == random_logs(20, seed=2) != random_logs(20, seed=3)


def test_the_vocabulary_has_every_word() -> None:
    words = set(vocabulary())
    for conversation in random_logs(100, seed=0):
        assert {word for message in conversation.messages for word in message.content.split()} <= words
    assert state_word(1, 2) in words


def test_histories_as_states_change_no_value() -> None:
    for number in range(10):
        problem = outcome_problem(number)
        _, states, responses = problem.reward.shape
        unrolled = of_histories(problem)
        generator = torch.Generator().manual_seed(number)
        policy = torch.rand(problem.reward.shape, generator=generator, dtype=torch.float64)
        policy /= policy.sum(-1, keepdim=True)
        of_state = torch.arange(unrolled.reward.shape[1]) % states
        values, expected = evaluate(unrolled, policy[:, of_state]), evaluate(problem, policy)
        torch.testing.assert_close(values.v[0, :states], expected.v[0])
        torch.testing.assert_close(values.v[1], expected.v[1][of_state])
        torch.testing.assert_close(optimum(unrolled).v[0, :states], optimum(problem).v[0])
        last = ((2 * responses + 4) * states) + 1  # s_0 = 2, a_0 = 4, s_1 = 1
        assert unrolled.transition[0, 2, 4, last] == problem.transition[0, 2, 4, 1]


def test_sizes_that_have_no_words_are_refused() -> None:
    with pytest.raises(ValueError, match="turns"):
        ExactCustomer(turns=5)
