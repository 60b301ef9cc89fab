"""A fresh `lightning.Trainer` for each phase, and the processes of a multi-device strategy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

import lightning as L
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lightning_iterppo.config import TrainerConfig
from lightning_iterppo.targets import instantiate
from lightning_iterppo.zero_stage_2 import ZeroStage2

#: The strategy that shards the weights: FSDP2, which Lightning calls model parallelism.
FSDP: Final = "fsdp"
#: The one that shards gradients and Adam's moments: ZeRO's stage 2.
DEEPSPEED: Final = "deepspeed"
Item = TypeVar("Item")
#: What Lightning's mixed precisions compute in.
MIXED: Final = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}


class TrainerFactory:
    """Makes the Trainers of a run from one configuration.

    Lightning then owns device, precision, strategy, accumulation and clipping. Sharding over processes is ours
    (conversations are dealt out, not batches), so its sampler injection is off.

    Args:
        config: the ``trainer`` section of a recipe.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config
        self._device: torch.device | None = None
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @property
    def several_processes(self) -> bool:
        """Whether the configuration asks for more than one process: all devices are as many as this machine has."""
        devices = self.config.devices
        if self.sharded or self.config.strategy == DEEPSPEED or self.config.num_nodes > 1:
            return True
        if isinstance(devices, list):
            return len(devices) > 1
        if str(devices) in ("auto", "-1"):
            return self.make(max_epochs=1).num_devices > 1
        return str(devices) != "1"

    @property
    def sharded(self) -> bool:
        """Whether the weights are divided among the processes."""
        return bool(self.config.strategy == FSDP)

    def mesh(self) -> DeviceMesh:
        """The processes, in one dimension, once they have been started."""
        return init_device_mesh(self.device.type, (world_size(),))

    def launch(self) -> None:
        """Starts the other processes, so that conversations are shared out before the first fit too.

        Does nothing for one process, or where they were started already (torchrun, SLURM).

        Raises:
            ConfigError: the strategy's package is not installed.
            MisconfigurationException: Lightning's, where there is no such device.
        """
        if not self.several_processes or torch.distributed.is_initialized():
            return
        self.make(max_epochs=1)  # which says what is missing: a package, or a device
        fabric = L.Fabric(
            accelerator=self.config.accelerator,
            devices=self.config.devices,
            num_nodes=self.config.num_nodes,
            strategy=self._strategy(fabric=True),
        )
        fabric.launch()

    @property
    def device(self) -> torch.device:
        """This process's device."""
        if self._device is None:
            self._device = torch.device(self.make(max_epochs=1).strategy.root_device)
        return self._device

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a Trainer's steps, for passes outside of them; nothing where there is no mixed one."""
        dtype = MIXED.get(str(self.config.precision))
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype, cache_enabled=False)

    def _strategy(self, *, fabric: bool = False) -> Any:
        strategy = self.config.strategy
        if strategy == FSDP:
            # The layers are in shards already, so that the processes only have to be there, and be left alone.
            return "ddp" if fabric else ModelParallelStrategy(data_parallel_size=world_size(), tensor_parallel_size=1)
        if strategy == DEEPSPEED:
            return "ddp" if fabric else ZeroStage2(str(self.config.precision), self.autocast)
        if not isinstance(strategy, dict):
            return strategy
        if not fabric:
            return instantiate(strategy)
        # Fabric's strategies are siblings of the Trainer's, under the same class name.
        _, _, name = str(strategy["_target_"]).rpartition(".")
        backend = strategy.get("process_group_backend")
        arguments = {} if backend is None else {"process_group_backend": backend}
        return instantiate({"_target_": f"lightning.fabric.strategies.{name}", **arguments})

    def make(
        self,
        *,
        max_epochs: int,
        callbacks: Sequence[Callback] = (),
        logger: Sequence[Logger] = (),
        rounds: bool = False,
    ) -> Trainer:
        """A Trainer for one phase.

        Args:
            max_epochs: epochs, or rounds.
            callbacks: Lightning callbacks.
            logger: loggers; none logs nothing.
            rounds: ask for a new training dataloader every epoch.
        """
        return Trainer(
            accelerator=self.config.accelerator,
            devices=self.config.devices,
            num_nodes=self.config.num_nodes,
            strategy=self._strategy(),
            precision=self.config.precision,  # type: ignore[arg-type]
            max_epochs=max_epochs,
            gradient_clip_val=self.config.gradient_clip_val,
            accumulate_grad_batches=self.config.accumulate_grad_batches,
            callbacks=list(callbacks),
            logger=list(logger) or False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1 if rounds else 0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def rank() -> int:
    """This process's number; 0 when there is only one."""
    return torch.distributed.get_rank() if _distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if _distributed() else 1


def share(count: int) -> int:
    """How many of so many things a process has at most."""
    return -(-count // world_size())


def barrier() -> None:
    """Waits until every process is here."""
    if _distributed():
        torch.distributed.barrier()


def over_processes(values: Tensor, device: torch.device) -> Tensor:
    """The sum of every process's values, all of one shape, on every process.

    Args:
        values: this process's.
        device: where processes can add up: this process's.
    """
    if not _distributed():
        return values
    total = values.detach().to(device, copy=True)
    torch.distributed.all_reduce(total)
    return total.to(values.device)


def gather_dealt(items: Sequence[Item]) -> list[Item]:
    """Items that were dealt out one by one, in their order, on every process: each gives its ``all[rank::world]``."""
    hands: list[Sequence[Item]] = gather_lists([items])
    turns = max(map(len, hands))
    return [hand[turn] for turn in range(turns) for hand in hands if turn < len(hand)]


def gather_lists(items: list[Any]) -> list[Any]:
    """Every process's items, one process's after another's, on every process."""
    if not _distributed():
        return items
    parts: list[list[Any] | None] = [None] * world_size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part or []]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
