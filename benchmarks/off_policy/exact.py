"""Random conversations whose policies' values are enumerated: logs of one policy, tables of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_iterppo.evaluation.fitted_q import FeatureTurns
from lightning_iterppo.evaluation.off_policy import LoggedTurns
from lightning_iterppo.theory import Problem, evaluate, improve, occupancy, outcome_problem


@dataclass(frozen=True)
class Case:
    """A policy and logs of another one.

    Args:
        truth: the policy's value, enumerated.
        kl: KL(π ‖ μ) in nats a conversation.
        logs: what is known of μ's conversations.
        turns: their turns with exact features: an indicator of each state and of each response in it.
    """

    truth: float
    kl: float
    logs: LoggedTurns
    turns: FeatureTurns


def draw(problem: Problem, policy: Tensor, conversations: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Conversations of a problem that ends when it is paid: states, actions, rewards and presence, each (n, T)."""
    turns, states, responses = problem.reward.shape
    paid, leads, chances = problem.reward.numpy(), problem.transition.numpy(), policy.numpy()
    shape = (conversations, turns)
    at, done = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    rewards, present = np.zeros(shape), np.zeros(shape, dtype=bool)
    start = problem.start.numpy()
    state = rng.choice(states, size=conversations, p=start / start.sum())
    going = np.ones(conversations, dtype=bool)
    for turn in range(turns):
        response = (chances[turn, state].cumsum(1) < rng.random((conversations, 1))).sum(1).clip(max=responses - 1)
        at[:, turn], done[:, turn], present[:, turn] = state, response, going
        sold = going & (rng.random(conversations) < paid[turn, state, response])
        rewards[:, turn] = sold
        # The problem's transitions count what is paid as an end; here it is known that nothing was.
        onward = leads[turn, state, response] / (1 - paid[turn, state, response])[:, None]
        following = (onward.cumsum(1) < rng.random((conversations, 1))).sum(1)
        going = going & ~sold & (following < states)
        state = following.clip(max=states - 1)
    return at, done, rewards, present


def make_case(number: int, beta: float | None, conversations: int, turns: int = 3) -> Case:
    """Logs of a random policy, and as the policy its exact improvement at KL coefficient ``beta`` (None: itself)."""
    problem = outcome_problem(number, turns=turns)
    shape = problem.reward.shape
    generator = torch.Generator().manual_seed(number + 77)
    behaviour = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
    policy = behaviour if beta is None else improve(behaviour, evaluate(problem, behaviour).q, beta)
    truth = float(problem.start @ evaluate(problem, policy).v[0])
    kl = torch.special.xlogy(policy, policy / behaviour).sum(-1)
    at, done, rewards, present = draw(problem, behaviour, conversations, np.random.default_rng(1000 * number))
    ratios = (policy / behaviour).log().numpy()[np.arange(shape[0]), at, done]
    return Case(
        truth,
        float((occupancy(problem, policy) * kl).sum()),
        LoggedTurns(ratios * present, rewards, present),
        _features(policy.numpy(), at, done, rewards, present),
    )


def _features(
    policy: np.ndarray, at: np.ndarray, done: np.ndarray, rewards: np.ndarray, present: np.ndarray
) -> FeatureTurns:
    turns, states, responses = policy.shape
    conversation, turn = np.nonzero(present)
    state = at[present]
    rows, first = np.arange(len(state)), turns * states
    here = turn * states + state
    taken, expected = (np.zeros((len(state), first * (1 + responses))) for _ in range(2))
    taken[rows, here] = expected[rows, here] = 1
    taken[rows, first + here * responses + done[present]] = 1
    for response in range(responses):
        expected[rows, first + here * responses + response] = policy[turn, state, response]
    return FeatureTurns(taken, expected, rewards[present], conversation)
