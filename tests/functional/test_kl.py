"""KL estimators on a distribution small enough to enumerate."""

from __future__ import annotations

import torch

from lightning_iterppo.functional import kl_k1, kl_k2, kl_k3

P = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.3, 0.3, 0.1, 0.2], dtype=torch.float64)


def test_both_estimators_are_unbiased() -> None:
    exact = (P * (P / Q).log()).sum()
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((P * estimator(P.log(), Q.log())).sum(), exact)


def test_k3_is_never_negative_and_varies_less() -> None:
    k1, k3 = kl_k1(P.log(), Q.log()), kl_k3(P.log(), Q.log())
    assert (k1 < 0).any()
    assert (k3 >= 0).all()
    near = 0.9 * P + 0.1 * Q  # where a trust region keeps a policy
    k1, k3 = kl_k1(near.log(), P.log()), kl_k3(near.log(), P.log())
    mean = (near * k1).sum()
    assert (near * (k3 - mean) ** 2).sum() < (near * (k1 - mean) ** 2).sum()


def test_the_gradient_of_k2_is_that_of_the_divergence() -> None:
    """Samples are drawn, so their probabilities are constants; only the estimate is differentiated."""
    logits = P.log().clone().requires_grad_()
    estimate = (P * kl_k2(logits.log_softmax(-1), Q.log())).sum()
    exact = (logits.softmax(-1) * (logits.log_softmax(-1) - Q.log())).sum()
    (found,), (wanted,) = torch.autograd.grad(estimate, logits), torch.autograd.grad(exact, logits)
    torch.testing.assert_close(found, wanted)
    assert wanted.abs().max() > 0.1


def test_k2_by_hand() -> None:
    torch.testing.assert_close(kl_k2(torch.tensor([-1.0]), torch.tensor([-3.0])), torch.tensor([2.0]))


def test_equal_distributions_are_at_zero() -> None:
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert torch.equal(estimator(P.log(), P.log()), torch.zeros_like(P))
