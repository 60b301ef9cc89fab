"""`iterppo` with DeepSpeed on processes of a processor, where Lightning does not let it run: what its tests start."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # before it is imported

import deepspeed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies import deepspeed as lightnings

from lightning_iterppo import config_rules
from lightning_iterppo.cli import main
from lightning_iterppo.micro_batches import MicroBatches
from lightning_iterppo.models.passes import Passes
from lightning_iterppo.trainer import gather_lists, rank
from lightning_iterppo.zero_stage_2 import ZeroStage2

DeepSpeedStrategy.setup_environment = DDPStrategy.setup_environment  # type: ignore[method-assign]
lightnings._validate_device_index_selection = lambda parallel_devices: None
config_rules.DEEPSPEED_ACCELERATORS = ("cpu",)
initialize, teardown = deepspeed.initialize, ZeroStage2.teardown


def looked_into(args: object, **others: Any) -> Any:
    """Without the number of a GPU, which a processor has not; sees that gradients come in one order everywhere.

    They are added up in the order in which each process has them: in two orders they would be other gradients' sums.
    """
    found = initialize(**others)
    engine, optimizer = found[:2]
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    process, step, came = optimizer.process_gradients, optimizer.step, []

    def processed(parameter: Any, group: int) -> None:
        came.append(names[id(parameter)])
        process(parameter, group)

    def stepped() -> None:
        mine, theirs = gather_lists([list(came)])
        assert len(came) > 20 and mine == theirs, (mine, theirs)
        came.clear()
        step()

    optimizer.process_gradients, optimizer.step = processed, stepped
    return found


def looked_at(strategy: ZeroStage2) -> None:
    """Sees that a phase leaves no hook of DeepSpeed's."""
    module = strategy.lightning_module
    assert module is not None and strategy.model is not module
    teardown(strategy)
    assert strategy.model is module
    assert not module._forward_pre_hooks and not module._forward_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in module.parameters())


deepspeed.initialize = looked_into
ZeroStage2.teardown = looked_at  # type: ignore[method-assign]

if "UNEVEN_PASSES" in os.environ:  # one process computes a row at a time, of all together; the other three, by length
    MicroBatches._size = lambda self, module, batch, part: 1 + 2 * rank()  # type: ignore[method-assign]
    Passes._call_cost = lambda self, device: 0.0 if rank() else 1e9  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
