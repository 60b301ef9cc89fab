"""The theorem, exactly: 1,000 random conversations each, in float64, without sampling."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_iterppo.theory import (
    Problem,
    ResponseTree,
    evaluate,
    improve,
    improvement_bound,
    multi_turn_gradient,
    occupancy,
    optimum,
    random_problem,
    single_turn_gradient,
)

INSTANCES = range(1000)
ROUNDING = 1e-12


def instance(seed: int, *, person: bool = False) -> tuple[Problem, Tensor]:
    """A random problem and the logits of a random policy for it."""
    problem = random_problem(
        seed, turns=2 + seed % 3, tokens=2 + seed % 2, gamma=(1.0, 0.9, 0.5)[seed % 3], person=person
    )
    turns, states = problem.reward.shape[:2]
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    shape = (turns, states, len(problem.tree.prefixes), problem.tree.tokens)
    return problem, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


# -- what the rest stands on -----------------------------------------------------------------------------------------


def test_responses_are_the_sequences_that_end_with_the_end_token_or_at_the_longest_length() -> None:
    tree = ResponseTree(tokens=3, length=2)
    assert set(tree.responses) == {(0,), *((first, second) for first, second in product((1, 2), (0, 1, 2)))}
    assert set(tree.prefixes) == {(), (1,), (2,)}


def test_the_probabilities_of_all_responses_sum_to_one() -> None:
    for seed in range(20):
        problem, logits = instance(seed)
        torch.testing.assert_close(
            problem.tree.policy(logits).sum(-1), torch.ones(logits.shape[:2], dtype=torch.float64)
        )


@pytest.mark.parametrize("person", [False, True])
def test_values_and_visits_are_those_of_every_conversation_written_out(person: bool) -> None:
    problem, logits = instance(4, person=person)
    policy = problem.tree.policy(logits)
    turns, states, responses = problem.reward.shape
    value, visits = 0.0, torch.zeros(turns, states, dtype=torch.float64)

    def go_on(turn: int, state: int, probability: float, discount: float) -> None:
        nonlocal value
        visits[turn, state] += probability * discount
        for suggested, sent in product(range(responses), range(responses)):
            kernel = float(suggested == sent)
            if problem.person is not None:
                kernel = float(problem.person[turn, state, suggested, sent])
            here = probability * policy[turn, state, suggested] * kernel
            if here == 0:
                continue
            value += float(here * discount * problem.reward[turn, state, sent])
            if turn + 1 < turns:
                for after in range(states):
                    go_on(
                        turn + 1,
                        after,
                        float(here * problem.transition[turn, state, sent, after]),
                        discount * problem.gamma,
                    )

    for state in range(states):
        go_on(0, state, float(problem.start[state]), 1.0)
    assert float(problem.start @ evaluate(problem, policy).v[0]) == pytest.approx(value, abs=ROUNDING)
    torch.testing.assert_close(occupancy(problem, policy), visits)


# -- the gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", [False, True], ids=["sent as suggested", "through a person"])
def test_the_single_turn_gradient_is_the_multi_turn_one(person: bool) -> None:
    for seed in INSTANCES:
        problem, logits = instance(seed, person=person)
        q = evaluate(problem, problem.tree.policy(logits)).q
        torch.testing.assert_close(
            single_turn_gradient(problem, logits, q), multi_turn_gradient(problem, logits), atol=1e-10, rtol=0
        )


def test_a_baseline_of_the_state_changes_nothing() -> None:
    for seed in range(50):
        problem, logits = instance(seed)
        values = evaluate(problem, problem.tree.policy(logits))
        torch.testing.assert_close(
            single_turn_gradient(problem, logits, values.q - values.v.unsqueeze(-1)),
            single_turn_gradient(problem, logits, values.q),
            atol=1e-12,
            rtol=0,
        )


def test_the_reward_of_the_turn_alone_is_another_gradient() -> None:
    different = 0
    for seed in range(50):
        problem, logits = instance(seed)
        shortsighted = single_turn_gradient(problem, logits, problem.reward)
        different += not torch.allclose(shortsighted, multi_turn_gradient(problem, logits), atol=1e-3)
    assert different == 50


# -- the improvement -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", [False, True], ids=["sent as suggested", "through a person"])
def test_an_improved_policy_is_better_in_every_state(person: bool) -> None:
    for seed in INSTANCES:
        problem, logits = instance(seed, person=person)
        policy = problem.tree.policy(logits)
        before = evaluate(problem, policy)
        for beta in (0.0, 0.03, 0.3, 3.0):
            after = evaluate(problem, improve(policy, before.q, beta))
            # Random rewards leave no state in which every response is as good as the others.
            assert (after.v > before.v).all(), (seed, beta)


def test_an_optimal_policy_is_left_as_good_as_it_is() -> None:
    for seed in range(50):
        problem, _ = instance(seed)
        best = optimum(problem)
        policy = improve(torch.ones_like(best.q), best.q, 0.0)
        for beta in (0.0, 0.3):
            torch.testing.assert_close(evaluate(problem, improve(policy, best.q, beta)).v, best.v)


@pytest.mark.parametrize("person", [False, True], ids=["sent as suggested", "through a person"])
@pytest.mark.parametrize("beta", [0.0, 0.01])
def test_iterating_converges_to_the_optimum(beta: float, person: bool) -> None:
    for seed in range(30):
        problem, logits = instance(seed, person=person)
        policy = problem.tree.policy(logits)
        for _ in range(problem.reward.shape[0] if beta == 0 else 300):
            policy = improve(policy, evaluate(problem, policy).q, beta)
        torch.testing.assert_close(evaluate(problem, policy).v, optimum(problem).v, atol=1e-3, rtol=0)


def test_a_large_beta_changes_little_and_a_small_one_much() -> None:
    problem, logits = instance(0)
    policy = problem.tree.policy(logits)
    q = evaluate(problem, policy).q
    moved = [float((improve(policy, q, beta) - policy).abs().sum()) for beta in (0.01, 0.1, 1.0, 10.0)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.1 < moved[0]


# -- a person between ------------------------------------------------------------------------------------------------


def test_the_value_of_the_sent_message_is_the_wrong_reward_for_a_suggestion() -> None:
    """What a message would do if it were sent is not what comes of suggesting it."""
    worse = 0
    for seed in INSTANCES:
        problem, logits = instance(seed, person=True)
        policy = problem.tree.policy(logits)
        values = evaluate(problem, policy)
        right = evaluate(problem, improve(policy, values.q, 0.1)).v
        wrong = evaluate(problem, improve(policy, values.sent, 0.1)).v
        assert (right > values.v).all()
        worse += bool((wrong < values.v - 1e-6).any())
    assert worse > 100, f"the wrong reward made a state worse in {worse} of {len(INSTANCES)} instances"


def test_the_gradient_of_the_sent_message_s_value_is_not_that_of_the_conversation() -> None:
    for seed in range(50):
        problem, logits = instance(seed, person=True)
        sent = evaluate(problem, problem.tree.policy(logits)).sent
        assert not torch.allclose(
            single_turn_gradient(problem, logits, sent), multi_turn_gradient(problem, logits), atol=1e-4
        )


# -- a Q that is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_the_loss_by_a_wrong_q_stays_inside_the_bound(epsilon: float) -> None:
    for seed in INSTANCES:
        problem, logits = instance(seed, person=seed % 2 == 1)
        policy = problem.tree.policy(logits)
        values = evaluate(problem, policy)
        generator = torch.Generator().manual_seed(seed)
        wrong = values.q + epsilon * (2 * torch.rand(values.q.shape, generator=generator, dtype=torch.float64) - 1)
        beta = 0.1
        improved = improve(policy, wrong, beta)
        gain = evaluate(problem, improved).v - values.v
        bound = improvement_bound(problem, policy, improved, beta, epsilon)
        assert (gain >= bound - ROUNDING).all(), seed
        turns = problem.reward.shape[0]
        worst = -2 * epsilon * sum(problem.gamma**i for i in range(turns))
        assert (bound >= worst).all()


def test_the_bound_of_a_right_q_is_a_gain() -> None:
    problem, logits = instance(0)
    policy = problem.tree.policy(logits)
    improved = improve(policy, evaluate(problem, policy).q, 0.1)
    assert (improvement_bound(problem, policy, improved, 0.1, 0.0) > 0).all()


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        ResponseTree(1, 2)
    with pytest.raises(ValueError, match="beta must not be negative"):
        improve(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), -1.0)
