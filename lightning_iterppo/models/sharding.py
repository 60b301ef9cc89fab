"""Layers in shards, one a process (FSDP2): whole for a training step, layer by layer, and for a while outside of them.

In training every process takes the same steps, so that a layer can be put together when it is computed and let go
afterwards. Sampling, scoring and held-out conversations are not the same number of passes for all, and sampling would
put every layer together once a token. For those all layers are put together once, see `Sharding.whole`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharding:
    """Shards modules.

    Args:
        modules: each is put together and let go as one.
        mesh: the processes, in one dimension.
    """

    def __init__(self, modules: Sequence[nn.Module], mesh: DeviceMesh) -> None:
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        self._modules = [cast(FSDPModule, module) for module in modules]
        self._depth = 0

    @property
    def is_whole(self) -> bool:
        """Whether this is within `whole`."""
        return self._depth > 0

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the weights are whole on every process, to be read: what is written into them is lost.

        All processes enter and leave it together, the outermost of several; within, each does what it likes.
        """
        if self._depth == 0:
            for module in self._modules:
                module.set_reshard_after_forward(False)
                module.unshard()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for module in self._modules:
                    module.set_reshard_after_forward(True)
                    module.reshard()


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Writes a whole value into a tensor that may be in shards; all processes do it."""
    placed: Any = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        placed = distribute_tensor(placed, target.device_mesh, target.placements)
    target.copy_(placed)
