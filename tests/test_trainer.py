"""Each phase's Trainer is made from one configuration."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

from lightning_iterppo.config import TrainerConfig
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.trainer import TrainerFactory, barrier, gather_lists, rank, world_size


def test_the_configuration_is_the_trainers() -> None:
    config = TrainerConfig(accelerator="cpu", precision="bf16-mixed", gradient_clip_val=0.5, accumulate_grad_batches=3)
    trainer = TrainerFactory(config).make(max_epochs=4, rounds=True)
    assert trainer.max_epochs == 4
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (0.5, 3)
    assert trainer.precision == "bf16-mixed"
    assert trainer.reload_dataloaders_every_n_epochs == 1  # type: ignore[attr-defined]
    assert TrainerFactory(config).make(max_epochs=1).reload_dataloaders_every_n_epochs == 0  # type: ignore[attr-defined]
    assert TrainerFactory(config).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("devices", "nodes", "several"),
    [
        (1, 1, False),
        ("1", 1, False),
        ("auto", 1, False),
        (2, 1, True),
        ([0, 1], 1, True),
        ([3], 1, False),
        (1, 2, True),
    ],
)
def test_when_there_are_several_processes(devices: Any, nodes: int, several: bool) -> None:
    config = TrainerConfig(accelerator="cpu", devices=devices, num_nodes=nodes)
    assert TrainerFactory(config).several_processes is several


def test_all_devices_are_several_processes_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2):
        monkeypatch.setattr(CPUAccelerator, "auto_device_count", staticmethod(lambda count=count: count))
        factory = TrainerFactory(TrainerConfig(accelerator="cpu", devices="auto", strategy="ddp"))
        assert factory.several_processes is (count > 1)


def test_a_strategy_may_be_a_class_with_arguments() -> None:
    spec = {"_target_": "lightning.pytorch.strategies.DDPStrategy", "process_group_backend": "gloo"}
    trainer = TrainerFactory(TrainerConfig(accelerator="cpu", devices=2, strategy=spec)).make(max_epochs=1)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.strategy.process_group_backend == "gloo"


def test_deepspeed_leaves_the_types_of_weights_and_batches() -> None:
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    from lightning_iterppo.zero_stage_2 import ZeroStage2

    for precision, mixed in (("bf16-mixed", True), ("32-true", False), ("bf16", True)):
        factory = TrainerFactory(TrainerConfig(strategy="deepspeed", precision=precision))
        assert factory.several_processes and not factory.sharded
        strategy = factory._strategy()
        assert isinstance(strategy, ZeroStage2) and factory._strategy(fabric=True) == "ddp"
        strategy._init_config_if_needed()
        assert strategy.config is not None and strategy.config["zero_optimization"]["stage"] == 2
        assert strategy.config["bf16"] == {"enabled": False} and "fp16" not in strategy.config
        assert strategy.config["torch_autocast"]["enabled"] is mixed
        assert strategy.config["torch_autocast"]["lower_precision_safe_modules"] == []
        weight = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
        assert strategy.precision_plugin.convert_module(weight).weight.dtype == torch.bfloat16
        assert strategy.precision_plugin.convert_input(torch.zeros(2, dtype=torch.float32)).dtype == torch.float32


def test_deepspeed_that_is_missing_is_named_before_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"deepspeed is needed for trainer.strategy deepspeed .*\[deepspeed\]"):
        TrainerFactory(TrainerConfig(strategy="deepspeed", precision="bf16-mixed", devices=2)).launch()


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        TrainerFactory(TrainerConfig(accelerator="cpu", threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_one_process_has_everything() -> None:
    assert (rank(), world_size()) == (0, 1)
    assert gather_lists([1, 2]) == [1, 2]
    barrier()
