"""What every module that is fitted needs of a strategy that shards the weights."""

from __future__ import annotations

from contextlib import ExitStack

import lightning.pytorch as pl

from lightning_iterppo.models.language_model import LanguageModel


class FittedModule(pl.LightningModule):
    """A module on a language model whose layers may be in shards.

    Args:
        model: the language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self._validating = ExitStack()

    def configure_model(self) -> None:
        """Nothing is left to do: the model is in shards, if it is to be, before the first fit."""

    def on_validation_start(self) -> None:
        """Processes may have different numbers of held-out batches."""
        self._validating.enter_context(self.model.whole())

    def on_validation_end(self) -> None:
        """The weights go back to their shards."""
        self._validating.close()
