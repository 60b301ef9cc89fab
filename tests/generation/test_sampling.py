"""How a token is drawn: the right distribution, and the log-probability of exactly that distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_iterppo.generation.randomness import uniforms
from lightning_iterppo.generation.sampling import Sampling, sample_tokens

PROBABILITIES = torch.tensor([0.5, 0.05, 0.3, 0.15])
DRAWS = 20_000


def draw(sampling: Sampling, rows: int = DRAWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    logits = (PROBABILITIES.log() + 3.0).expand(rows, -1)  # any constant: logits are not log-probabilities
    return sample_tokens(logits, sampling, uniforms(range(seed, seed + rows), 1)[:, 0])


def chi_square(tokens: Tensor, expected: Tensor) -> float:
    counts = torch.bincount(tokens, minlength=len(expected)).float()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible] * len(tokens)
    return float(((counts[possible] - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Sampling(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        (Sampling(top_p=0.79), torch.tensor([0.5, 0.0, 0.3, 0.0]) / 0.8),
        (Sampling(top_p=0.9), torch.tensor([0.5, 0.0, 0.3, 0.15]) / 0.95),
        (Sampling(top_p=0.01), torch.tensor([1.0, 0.0, 0.0, 0.0])),
        # Temperature first, then top-p: 0.25, 0.09, … of 0.365 are 0.685, 0.247, …
        (Sampling(temperature=0.5, top_p=0.7), torch.tensor([0.25, 0.0, 0.09, 0.0]) / 0.34),
    ],
)
def test_tokens_come_as_often_as_they_should(sampling: Sampling, expected: Tensor) -> None:
    tokens, logprobs = draw(sampling)
    assert chi_square(tokens, expected) < 16.3  # 3 degrees of freedom: passed by 99.9 % of right samplers
    torch.testing.assert_close(logprobs, expected[tokens].log(), atol=1e-5, rtol=0)


def test_temperature_zero_takes_the_most_likely_token() -> None:
    tokens, logprobs = draw(Sampling(temperature=0.0), rows=50)
    assert (tokens == 0).all()
    assert (logprobs == 0).all()


def test_a_seed_decides() -> None:
    first, again, other = (draw(Sampling(), rows=100, seed=seed)[0] for seed in (3, 3, 1000))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_values_out_of_range(values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"sampling\.{name} must be"):
        Sampling(**values)  # type: ignore[arg-type]
