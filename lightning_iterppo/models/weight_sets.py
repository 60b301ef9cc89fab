"""Sets of weights that take each other's place in one module: variants of a model whose weights all train."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lightning_iterppo.models.sharding import Sharding, exchange


class WeightSets:
    """Keeps the sets that are not in use. In shards, a set is this process's part of each weight.

    Args:
        module: whose parameters they are.
        active: the name of the set in use.
    """

    def __init__(self, module: nn.Module, active: str) -> None:
        self.module = module
        self.active = active
        #: Where the module's weights are in shards.
        self.sharding: Sharding | None = None
        self._stored: dict[str, list[Tensor]] = {}

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Changes the tensors of all sets that are not in use, as `torch.nn.Module.to` does those of a module."""
        self._stored = {name: [fn(tensor) for tensor in tensors] for name, tensors in self._stored.items()}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights of a set by name, no copies; those in use where it has none of its own."""
        live = {key: parameter.data for key, parameter in self.module.named_parameters()}
        return dict(zip(live, self._stored[name], strict=True)) if name in self._stored else live

    def use(self, name: str) -> None:
        """Puts a set into the module.

        Raises:
            RuntimeError: it is another one than that which is whole for a while.
        """
        if name == self.active:
            return
        self.make_room(name)
        live, stored = list(self.module.parameters()), self._stored.pop(name)
        if self.sharding is None:
            self._stored[self.active] = [parameter.data for parameter in live]
            for parameter, tensor in zip(live, stored, strict=True):
                parameter.data = tensor
        else:
            exchange(live, stored)
            self._stored[self.active] = stored
        self.active = name

    def copy(self, source: str, target: str) -> None:
        """Makes one set equal to another."""
        if target not in self._stored and target != self.active:
            self._stored[target] = [tensor.clone() for tensor in self.tensors(source).values()]
            return
        destination = self.tensors(target)
        for key, tensor in self.tensors(source).items():
            destination[key].copy_(tensor)

    def make_room(self, name: str) -> None:
        """Gives a set weights of its own, those in use now, if it has none yet.

        Raises:
            RuntimeError: those in use are whole for a while.
        """
        if name == self.active:
            return
        if self.sharding is not None and self.sharding.is_whole:
            raise RuntimeError(f"the weights of {self.active} are whole for a while: choose {name} before")
        if name not in self._stored:
            self._stored[name] = [parameter.detach().clone() for parameter in self.module.parameters()]

    def discard(self, name: str) -> None:
        """Frees the weights of a set that is not in use."""
        self._stored.pop(name, None)
