"""`iterppo` with DeepSpeed on processes of a processor, where Lightning does not let it run: what its tests start."""

from __future__ import annotations

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"  # before it is imported

import deepspeed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies import deepspeed as lightnings

from lightning_iterppo import config_rules
from lightning_iterppo.cli import main
from lightning_iterppo.zero_stage_2 import ZeroStage2

DeepSpeedStrategy.setup_environment = DDPStrategy.setup_environment  # type: ignore[method-assign]
lightnings._validate_device_index_selection = lambda parallel_devices: None
config_rules.DEEPSPEED_ACCELERATORS = ("cpu",)
initialize, teardown = deepspeed.initialize, ZeroStage2.teardown


def without_number(args: object, **others: object) -> object:
    """Lightning tells the number of a GPU, which a processor has not."""
    return initialize(**others)


def looked_at(strategy: ZeroStage2) -> None:
    """Sees that a phase leaves no hook of DeepSpeed's."""
    module = strategy.lightning_module
    assert module is not None and strategy.model is not module
    teardown(strategy)
    assert strategy.model is module
    assert not module._forward_pre_hooks and not module._forward_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in module.parameters())


deepspeed.initialize = without_number
ZeroStage2.teardown = looked_at  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
