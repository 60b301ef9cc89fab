"""LoRA's linear maps with the adapter added into the weight, for as long as a pass or a generation lasts.

An adapter beside its weight costs two small products and three passes over the output of every linear map, forward and
backward. ``W + s·BA`` gives the same output in one product and costs a few hundredths of a second for a whole model, so
it pays from some hundred tokens on. The adapter still trains: the gradients of A and B do not need their own outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from lightning_iterppo.models.linear import FewRowsLinear, linear


class _FoldedLinear(torch.autograd.Function):
    """``F.linear(x, W + s·BA, bias)``, differentiable in x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, folded: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, folded, down, up)
        ctx.scale = scale
        return linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, folded, down, up = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (tokens, out)
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        grad_x = (grad @ folded).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_down = ((grad @ up).T @ flat) * ctx.scale if ctx.needs_input_grad[3] else None
        grad_up = (grad.T @ (flat @ down.T)) * ctx.scale if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_down, grad_up, None


# The folded weight, A, B and their scale.
Fold = tuple[Tensor, Tensor, Tensor, float]


class _FoldableLinear(LoraLinear):
    """Peft's layer, which computes with ``fold`` while there is one."""

    fold: Fold | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(…, in) to (…, out)."""
        if self.fold is None:
            return super().forward(x, *args, **kwargs)
        folded, down, up, scale = self.fold
        return _FoldedLinear.apply(x, folded, self.get_base_layer().bias, down, up, scale)  # type: ignore[no-untyped-call]


class Folding:
    """The adapters of a model, added into the weights on demand; the weights themselves never change.

    Left as they are: maps that are not plain ones in full (quantised, or a shard of one), weights in another type than
    the adapter's, which would round it away, and everything under autocast.

    Args:
        model: a model with peft's LoRA layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._adapter: str | None = None  # the one that is folded in
        self._layers: list[_FoldableLinear] = []
        for module in model.modules():
            if type(module) is LoraLinear:
                module.__class__ = _FoldableLinear
                self._layers.append(cast(_FoldableLinear, module))

    @property
    def count(self) -> int:
        """How many maps are folded now."""
        return sum(layer.fold is not None for layer in self._layers)

    @contextmanager
    def folded(self, adapter: str) -> Iterator[None]:
        """Within it, forward passes use ``adapter`` folded in, as it is on entering: it must not change meanwhile.

        A backward pass may come after it. Within another one of the same adapter nothing changes.
        """
        if adapter == self._adapter:
            yield
            return
        with self._set(adapter, [_fold(layer, adapter) for layer in self._layers]):
            yield

    def again(self) -> AbstractContextManager[None]:
        """A block for later, within which everything is folded as it is now."""
        return self._set(self._adapter, [layer.fold for layer in self._layers])

    @contextmanager
    def _set(self, adapter: str | None, folds: Sequence[Fold | None]) -> Iterator[None]:
        before = self._adapter, [layer.fold for layer in self._layers]
        try:
            self._put(adapter, folds)
            yield
        finally:
            self._put(*before)

    def _put(self, adapter: str | None, folds: Sequence[Fold | None]) -> None:
        self._adapter = adapter
        for layer, fold in zip(self._layers, folds, strict=True):
            layer.fold = fold


@torch.no_grad()
def _fold(layer: LoraLinear, adapter: str) -> Fold | None:
    """The folded weight, A, B and their scale; None where folding would not give what the layer gives."""
    base = layer.get_base_layer()
    if (
        type(base) not in (nn.Linear, FewRowsLinear)
        or adapter not in layer.lora_A
        or list(layer.active_adapters) != [adapter]
    ):
        return None
    if layer.disable_adapters or layer.merged or adapter in layer.lora_variant:
        return None
    weight = cast(Tensor, base.weight)
    if torch.is_autocast_enabled(weight.device.type):
        return None
    if layer.training and not isinstance(layer.lora_dropout[adapter], nn.Identity):
        return None
    down = cast(Tensor, layer.lora_A[adapter].weight)
    up = cast(Tensor, layer.lora_B[adapter].weight)
    whole = weight.shape == (up.shape[0], down.shape[1]) and type(weight.data) is Tensor
    if not whole or not weight.dtype == down.dtype == up.dtype:
        return None
    scale = float(layer.scaling[adapter])
    return torch.addmm(weight, up, down, alpha=scale), down, up, scale
