"""ZeRO's stage 2 as a phase of the loop needs it: weights whole and in their types, and nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, cast

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn

from lightning_iterppo.extras import need

#: Elements of gradients that are added up, or of weights that are put together, at a time: 200 MB of float32.
BUCKET: Final = 50_000_000


class TypesKept(DeepSpeedPrecision):
    """Weights and batches in the types that they have, as under DDP; a mixed precision is products in bfloat16.

    DeepSpeed's own mixed precision rounds the weights that train to bfloat16, and Lightning's plugin the
    log-probabilities that PPO compares with.

    Args:
        precision: of the steps.
        autocast: the same, for what is computed outside of them.
    """

    def __init__(self, precision: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(precision)
        self._autocast = autocast

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def convert_input(self, data: Any) -> Any:
        """The batch itself."""
        return data

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """The precision, also for what a phase computes between its steps."""
        with self._autocast():
            yield


class ZeroStage2(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, with gradients and Adam's moments divided among processes.

    Every phase has a new one, on the same weights: after it DeepSpeed's hooks are gone from them, and what it held is
    free.

    Args:
        precision: of the steps: ``bf16-mixed`` or ``32-true``, or Lightning's shorter names of the two.
        autocast: the same, for what is computed outside of them.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """

    def __init__(self, precision: str, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        need("deepspeed", "for trainer.strategy deepspeed", "deepspeed")
        mixed = precision.startswith("bf16")
        super().__init__(
            precision_plugin=TypesKept("bf16-mixed" if mixed else "32-true", autocast),
            config={
                # Only shown by DeepSpeed. Lightning would ask the dataloader for it, and making one samples a round.
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
                # Else bf16-mixed is DeepSpeed's own, which makes the module's weights bfloat16.
                "bf16": {"enabled": False},
                # Gradients of all modules are added up in the types that they have, that is float32.
                "torch_autocast": {
                    "enabled": mixed,
                    "dtype": "bfloat16",
                    "lower_precision_safe_modules": [],
                },
            },
        )

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Nothing: without training there is nothing to divide, and Lightning's takes every hook off the model."""

    def teardown(self) -> None:
        """Gives the module back as it was but for what it learnt, and frees what DeepSpeed held."""
        if self.model is not self.lightning_module:
            engine = cast(Any, self.model)
            engine.destroy()
            engine.module_forward_pre_hook.remove()
            engine.module_forward_post_hook.remove()
            del engine
            self.model = cast(pl.LightningModule, self.lightning_module)
            self.optimizers, self.lr_scheduler_configs = [], []
            gc.collect()  # it refers to itself, and has parts of weights, gradients and moments
        super().teardown()
