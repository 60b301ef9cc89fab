"""The critic's linear head on a trunk that stays as it is: solved for, and measured by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_iterppo.functional.calibration import calibration_figures
from lightning_iterppo.functional.logistic import fit_logistic, fit_offset
from lightning_iterppo.functional.objectives import BinaryCrossEntropy, Objective, SquaredError
from lightning_iterppo.functional.ridge import fit_ridge


@dataclass(slots=True)
class ActionFeatures:
    """What the head sees of actions, on the host.

    Args:
        values: (n, hidden).
        returns: of the actions, (n,).
        conversations: which conversation each action is of, (n,): a number that means nothing but "the same".
        states: the same before each action, (n, hidden), where it was asked for.
    """

    values: Tensor
    returns: Tensor
    conversations: Tensor
    states: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[ActionFeatures]) -> ActionFeatures:
        """All parts as one; conversations of different parts are different.

        Raises:
            ValueError: there is no part.
        """
        if not parts:
            raise ValueError("no conversation with a known outcome, so there is nothing to fit the critic to")
        numbered, first = [], 0
        for part in parts:
            numbered.append(replace(part, conversations=part.conversations + first))
            first += int(part.conversations.max()) + 1 if len(part.conversations) else 0
        return cls._stacked(numbered)

    @classmethod
    def in_order(cls, parts: Sequence[ActionFeatures]) -> ActionFeatures:
        """All parts as one, in the order of conversations; the same number is the same conversation in all of them."""
        joined = cls._stacked(parts)
        return joined.where(torch.argsort(joined.conversations, stable=True))

    @classmethod
    def _stacked(cls, parts: Sequence[ActionFeatures]) -> ActionFeatures:
        states = [part.states for part in parts if part.states is not None]
        return cls(
            torch.cat([part.values for part in parts]),
            torch.cat([part.returns for part in parts]),
            torch.cat([part.conversations for part in parts]),
            torch.cat(states) if len(states) == len(parts) else None,
        )

    def where(self, chosen: Tensor) -> ActionFeatures:
        """The actions at some places, or where ``chosen`` (n,) is true."""
        states = None if self.states is None else self.states[chosen]
        return ActionFeatures(self.values[chosen], self.returns[chosen], self.conversations[chosen], states)


def solve_head(
    newest: ActionFeatures,
    past: ActionFeatures | None = None,
    *,
    prior: float,
    trust: float,
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    """The optimal linear head for all samples, drawn towards how often the newest conversations go well.

    People and earlier policies tell good actions from bad ones as well as π_k does, but win more often, or less: their
    samples shape the weights, and the newest conversations alone set the bias. A few hundred conversations make such
    weights too sure; ``trust`` takes that back without changing which action is better. Fitting a slope instead (Platt
    1999) makes it worse on the samples that shaped the weights, and is too noisy on a few that were left out.

    Args:
        newest: of the conversations that π_k made.
        past: of all others.
        prior: precision of the prior on the weights; higher keeps them smaller.
        trust: what the weights are multiplied with, from 0 (the mean for every action) to 1 (the optimum).
        objective: cross-entropy or the squared error.

    Returns:
        Weight (hidden,) and bias (), float64.

    Raises:
        ValueError: the objective has no linear optimum to solve for.
    """
    samples = newest if past is None else ActionFeatures.join([past, newest])
    if isinstance(objective, BinaryCrossEntropy):
        weight = trust * fit_logistic(samples.values, samples.returns, prior=prior)[0]
        return weight, fit_offset(newest.values.double() @ weight, newest.returns)
    if isinstance(objective, SquaredError):
        # At ½ a logit is four times a probability: with four times the prior both losses draw the weights alike.
        weight = trust * fit_ridge(samples.values, objective.outputs_of(samples.returns), prior=4 * prior)
        return weight, (objective.outputs_of(newest.returns).double() - newest.values.double() @ weight).mean()
    raise ValueError("the head of this loss cannot be solved for: take bce or mse, or critic.solve_head=false")


def cross_validate_head(
    newest: ActionFeatures,
    past: ActionFeatures | None = None,
    *,
    prior: float,
    trust: float,
    objective: Objective,
    folds: int,
    seed: int,
) -> dict[str, float | None]:
    """Figures of `solve_head` on the newest conversations, each predicted by a head fitted without it.

    Every conversation is held out once, whole: as many measured turns as there are, where one split of a hundred
    conversations measures little but chance.

    Args:
        newest: as for `solve_head`; what is held out in turn.
        past: as for `solve_head`; always fitted to.
        prior: as for `solve_head`.
        trust: as for `solve_head`.
        objective: as for `solve_head`.
        folds: parts that the conversations are cut into; at most one a conversation.
        seed: the cut's randomness.

    Returns:
        What `calibration_figures` gives, with ``brier_constant`` of the constants that the same conversations give: the
        mean of those that were not held out. Empty with fewer than two conversations.
    """
    names = torch.unique(newest.conversations)
    folds = min(folds, len(names))
    if folds < 2:
        return {}
    order = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))]
    outputs = torch.zeros(len(newest.returns), dtype=torch.float64)
    constant = torch.zeros_like(outputs)
    for fold in range(folds):
        held = torch.isin(newest.conversations, order[fold::folds])
        weight, bias = solve_head(newest.where(~held), past, prior=prior, trust=trust, objective=objective)
        outputs[held] = newest.values[held].double() @ weight + bias
        constant[held] = newest.returns[~held].double().mean()
    losses = objective.losses(outputs, newest.returns.double())
    return {
        **calibration_figures(objective.values(outputs), newest.returns, losses, probability=objective.probability),
        "brier_constant": float((constant - newest.returns).square().mean()),
    }
