"""Pure tensor functions: advantages, clipped losses, KL estimators. They know nothing of models or conversations."""

from lightning_iterppo.functional.advantages import gae, whiten
from lightning_iterppo.functional.kl import kl_k1, kl_k2, kl_k3
from lightning_iterppo.functional.losses import clipped_policy_loss, clipped_value_loss, masked_mean

__all__ = ["clipped_policy_loss", "clipped_value_loss", "gae", "kl_k1", "kl_k2", "kl_k3", "masked_mean", "whiten"]
