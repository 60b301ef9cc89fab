"""Iterative PPO on Lightning: train a language-model agent on the outcome of a whole conversation."""

from importlib.metadata import version

__version__ = version("lightning-iterppo")

__all__ = ["__version__"]
