"""LoRA's linear maps with the adapter added into the weight, for as long as a pass or a generation lasts.

An adapter beside its weight costs two small products and three passes over the output of every linear map, forward and
backward. ``W + s·BA`` gives the same output in one product and costs a few hundredths of a second for a whole model, so
it pays from some hundred tokens on. The adapter still trains: the gradients of A and B do not need their own outputs.

Weights of 16 bits are the exception: what an adapter adds to one is mostly less than half of its last bit, and rounding
would drop it. There the adapter stays beside the weight and is computed in the weight's type too, where the processor
is many times faster than with the adapter's 32 bits, with one pass over the output instead of three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_iterppo.models.linear import FewRowsLinear, is_whole, linear


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


def _beside(x: Tensor, weight: Tensor, bias: Tensor | None, low: _Low) -> tuple[Tensor, Tensor, Tensor]:
    """The output (…, out), the input as (tokens, in), and what A makes of it, (tokens, rank)."""
    flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    inner = flat @ low.down.T
    return F.linear(flat, weight, bias).addmm_(inner, low.scaled_up.T).view(*x.shape[:-1], -1), flat, inner


class _BesideLinear(torch.autograd.Function):
    """``F.linear(x, W, bias) + s·(x Aᵀ) Bᵀ`` in W's type, differentiable in x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, low: _Low, scale: float
    ) -> Tensor:
        output, flat, inner = _beside(x, weight, bias, low)
        ctx.save_for_backward(flat, inner, weight, down, up)
        ctx.low, ctx.scale, ctx.like = low, scale, x
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, down, up = ctx.saved_tensors
        low = ctx.low
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (tokens, out)
        grad_inner = grad @ low.scaled_up  # (tokens, rank)
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, low.down).view(ctx.like.shape).to(ctx.like.dtype)
        if ctx.needs_input_grad[3]:
            grad_down = (grad_inner.T @ flat).to(down.dtype)
        if ctx.needs_input_grad[4]:
            grad_up = (grad.T @ inner).to(up.dtype) * ctx.scale
        return grad_x, None, None, grad_down, grad_up, None, None


@dataclass(frozen=True, slots=True)
class _Low:
    """An adapter's matrices in the weight's type: A, and s·B."""

    down: Tensor
    scaled_up: Tensor


@dataclass(frozen=True, slots=True)
class _Fold:
    """How a map computes for a while: with W + s·BA, or with A and B in W's type beside it."""

    down: Tensor
    up: Tensor
    scale: float
    folded: Tensor | None = None
    low: _Low | None = None


class _FoldableLinear(LoraLinear):
    """Peft's layer, which computes with ``fold`` while there is one."""

    fold: _Fold | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(…, in) to (…, out)."""
        if self.fold is None:
            return super().forward(x, *args, **kwargs)
        fold, base = self.fold, cast(nn.Linear, self.get_base_layer())
        if fold.low is not None:
            if not torch.is_grad_enabled():
                return _beside(x, base.weight, base.bias, fold.low)[0]
            arguments = (x, base.weight, base.bias, fold.down, fold.up, fold.low, fold.scale)
            return _BesideLinear.apply(*arguments)  # type: ignore[no-untyped-call]
        return _FoldedLinear.apply(x, fold.folded, base.bias, fold.down, fold.up, fold.scale)  # type: ignore[no-untyped-call]


class Folding:
    """The adapters of a model, added into the weights on demand; the weights themselves never change.

    Left as they are: maps that are not plain ones in full (quantised, or a shard of one), and all under autocast.

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
        """How many maps compute in another way than peft's now."""
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
    def _set(self, adapter: str | None, folds: Sequence[_Fold | None]) -> Iterator[None]:
        before = self._adapter, [layer.fold for layer in self._layers]
        try:
            self._put(adapter, folds)
            yield
        finally:
            self._put(*before)

    def _put(self, adapter: str | None, folds: Sequence[_Fold | None]) -> None:
        self._adapter = adapter
        for layer, fold in zip(self._layers, folds, strict=True):
            layer.fold = fold


@torch.no_grad()
def _fold(layer: LoraLinear, adapter: str) -> _Fold | None:
    """How the layer computes; None where only peft's own way gives what the layer gives."""
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
    whole = weight.shape == (up.shape[0], down.shape[1]) and is_whole(weight)
    if not whole or down.dtype != up.dtype:
        return None
    scale = float(layer.scaling[adapter])
    if weight.dtype in (torch.bfloat16, torch.float16):
        return _Fold(down, up, scale, low=_Low(down.to(weight.dtype), (up * scale).to(weight.dtype)))
    if weight.dtype != down.dtype:
        return None
    return _Fold(down, up, scale, folded=torch.addmm(weight, up, down, alpha=scale))
