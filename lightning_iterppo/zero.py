"""ZeRO's stage 2 as a phase of the loop needs it: weights whole and as they are, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, cast

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn

#: Elements that are reduced, or put together, at a time: 200 MB of float32.
BUCKET = 50_000_000


class WeightsAsTheyAre(DeepSpeedPrecision):
    """A mixed precision as under DDP: weights and batches keep their types, products are computed in bfloat16.

    DeepSpeed's own kind would round the weights that train, and the log-probabilities that PPO compares with.

    Args:
        precision: of the steps.
        autocast: the same, for what is computed outside of them.
    """

    def __init__(self, precision: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(precision)
        self.forward_context = autocast  # type: ignore[method-assign]

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def convert_input(self, data: Any) -> Any:
        """The batch itself."""
        return data


class ZeroStage2(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, with gradients and Adam's moments divided among processes.

    A phase after another takes a new one, on the same weights: after each DeepSpeed's hooks are gone from them, and
    what it held is free.

    Args:
        precision: of the steps.
        autocast: the same, for what is computed outside of them.
    """

    def __init__(
        self, precision: Literal["32-true", "bf16-mixed"], autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__(
            precision_plugin=WeightsAsTheyAre(precision, autocast),
            config={
                # Said here, because Lightning would ask the dataloader, and that samples a round.
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
                # Else Lightning makes bf16-mixed DeepSpeed's own kind, which turns the weights into bfloat16.
                "bf16": {"enabled": False},
                # Of no module are gradients rounded before they are added up.
                "torch_autocast": {
                    "enabled": precision == "bf16-mixed",
                    "dtype": "bfloat16",
                    "lower_precision_safe_modules": [],
                },
            },
        )

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Nothing is divided where nothing trains; Lightning's would take all hooks off the model."""

    def teardown(self) -> None:
        """Gives the weights back as they were, changed by training only."""
        if self.model is not self.lightning_module:
            engine = cast(Any, self.model)
            engine.destroy()
            engine.module_forward_pre_hook.remove()
            engine.module_forward_post_hook.remove()
            self.model = cast(pl.LightningModule, self.lightning_module)
            self.optimizers, self.lr_scheduler_configs = [], []
        super().teardown()
