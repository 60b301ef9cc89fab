"""Estimates of KL(π ‖ π_other) from tokens that π sampled (Schulman 2020, "Approximating KL divergence")."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """The log-ratio, log π - log π_other, a token: unbiased, high variance, may be negative. Same shape in and out."""
    return logprobs - other_logprobs


def kl_k2(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """½ (log π - log π_other)² a token. Same shape in and out.

    As a number it is biased, but its gradient is that of the KL itself when π sampled the tokens, and it grows with the
    log-ratio only as a square: in a loss it does not explode where k3's exponential does.
    """
    return 0.5 * (logprobs - other_logprobs) ** 2


def kl_k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """(ρ - 1) - log ρ with ρ = π_other / π a token: unbiased, never negative. Same shape in and out."""
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio
