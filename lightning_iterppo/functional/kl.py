"""Estimates of KL(π ‖ π_other) from tokens that π sampled (Schulman 2020, "Approximating KL divergence")."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """The log-ratio, log π - log π_other, a token: unbiased, high variance, may be negative. Same shape in and out."""
    return logprobs - other_logprobs


def kl_k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """(ρ - 1) - log ρ with ρ = π_other / π a token: unbiased, never negative. Same shape in and out."""
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio
