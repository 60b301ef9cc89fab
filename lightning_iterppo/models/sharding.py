"""Layers in shards, one a process (FSDP2): whole for a training step, layer by layer, and for a while outside of them.

In training every process takes the same steps, so that a layer can be put together when it is computed and let go
afterwards. Sampling, scoring and held-out conversations are not the same number of passes for all, and sampling would
put every layer together once a token. For those all layers are put together once, see `Sharding.whole`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

_PASS = "pass_of"


class Sharding:
    """Shards modules.

    Args:
        modules: each is put together and let go as one.
        mesh: the processes, in one dimension.
        around: a module that holds some of them, whose other weights are to be sharded too: together, since weights
            that are used twice, such as tied embeddings, cannot be let go in between. None leaves them whole.
    """

    def __init__(self, modules: Sequence[nn.Module], mesh: DeviceMesh, around: nn.Module | None = None) -> None:
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            module.register_forward_hook(self._computed)
        self._modules = [cast(FSDPModule, module) for module in modules]
        self._around = None if around is None else _shard_around(around, mesh)
        self._depth = 0

    @property
    def is_whole(self) -> bool:
        """Whether this is within `whole`."""
        return self._depth > 0

    def through(self, part: nn.Module) -> Callable[..., Any]:
        """Calls a part of what is around the modules; its other weights are whole until the end of the backward pass.

        In what is computed of the part's output too, which is why they are not let go before.
        """
        if self._around is None:
            return part
        run: Callable[..., Any] = getattr(self._around, _PASS)
        return lambda *args, **kwargs: run(part, *args, **kwargs)

    def _computed(self, module: nn.Module, args: Any, output: Any) -> None:
        """Lets go of what is computed once more within a backward pass, which puts it together again when it needs it.

        FSDP keeps it there: of rows that are computed again (`MicroBatches`) all layers would be whole together. What
        is whole until the end of the pass is what gradients end in.
        """
        ends = _has_gradients(output) and not _has_gradients(args)
        if torch._C._current_graph_task_id() != -1 and not ends and not self.is_whole:
            cast(FSDPModule, module).reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the weights are whole on every process, to be read: what is written into them is lost.

        All processes enter and leave it together, the outermost of several; within, each does what it likes.
        """
        everything = [*self._modules, *([] if self._around is None else [self._around])]
        if self._depth == 0:
            for module in self._modules:
                module.set_reshard_after_forward(False)
            for module in everything:
                module.unshard()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for module in self._modules:
                    module.set_reshard_after_forward(True)
                for module in everything:
                    module.reshard()


def _has_gradients(values: Any) -> bool:
    each = values if isinstance(values, tuple) else (values,)
    return any(isinstance(value, Tensor) and value.requires_grad for value in each)


def _shard_around(module: nn.Module, mesh: DeviceMesh) -> FSDPModule:
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    vars(module)[_PASS] = _pass_of
    register_fsdp_forward_method(module, _PASS)
    found = cast(FSDPModule, module)
    # A first pass, of nothing: FSDP takes for the outermost module what is computed first, and generation computes
    # layers without what is around them.
    getattr(module, _PASS)(_nothing)
    found.reshard()
    return found


def _pass_of(part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return part(*args, **kwargs)


def _nothing() -> None:
    return None


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Writes a value, whole or in the same shards, into a tensor that may be in shards; all processes do it."""
    placed: Any = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor) and not isinstance(placed, DTensor):
        placed = distribute_tensor(placed, target.device_mesh, target.placements)
    target.copy_(placed)


@torch.no_grad()
def exchange(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Exchanges the values of tensors in the same shards, in place: FSDP and optimisers know the tensors themselves.

    Takes the memory of one shard of the largest.
    """
    for own, other in zip(ours, theirs, strict=True):
        here, there = cast(DTensor, own).to_local(), cast(DTensor, other).to_local()
        kept = here.clone()
        here.copy_(there)
        there.copy_(kept)


@torch.no_grad()
def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, for files. What is in shards is put together for the first process.

    Tensor by tensor, and all processes do it then; the others get nothing of what is in shards.
    """
    found = {}
    for key, tensor in tensors.items():
        first = True
        if isinstance(tensor, DTensor):
            first = tensor.device_mesh.get_rank() == 0
            tensor = tensor.full_tensor()
        if first:
            found[key] = tensor.detach().to("cpu", copy=True).contiguous()
    return found
