"""LoRA's linear maps with the adapter added into the weight, for as long as a pass or a generation lasts.

An adapter beside its weight costs two small products and three passes over the output of every linear map, forward and
backward. ``W + s·BA`` gives the same output in one product and costs a few hundredths of a second for a whole model, so
it pays from some hundred tokens on. The adapter still trains: the gradients of A and B do not need their own outputs.

Weights of 16 bits are the exception: what an adapter adds to one is mostly less than half of its last bit, and rounding
would drop it. There the adapter stays beside the weight and is computed in the weight's type too, where the processor
is many times faster than with the adapter's 32 bits, with one pass over the output instead of three.

DoRA (Liu et al. 2024) gives every row of ``W + s·BA`` a trained length m: row i is multiplied with m_i / n_i, where n_i
is the length that it has by itself, through which no gradient goes (section 4.3). Peft measures all n in every pass,
for every token that is generated; here they are measured once for as long as the weights stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_iterppo.models.linear import FewRowsLinear, is_whole, linear


class _FoldedLinear(torch.autograd.Function):
    """``F.linear(x, c·(W + s·BA), bias)``, differentiable in x, A and B, and with DoRA in the lengths m; c = m / n."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        folded: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        lengths: Tensor | None,
        factor: Tensor | None,
    ) -> Tensor:
        output = linear(x, folded, bias)
        kept = None if lengths is None else output
        ctx.save_for_backward(x, folded, bias, down, up, lengths, factor, kept)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, folded, bias, down, up, lengths, factor, output = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (tokens, out)
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        grad_x = (grad @ folded).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_lengths = _of_lengths(grad, output, bias, lengths) if ctx.needs_input_grad[6] else None
        if factor is not None:
            grad = grad * factor
        grad_down = ((grad @ up).T @ flat) * ctx.scale if ctx.needs_input_grad[3] else None
        grad_up = (grad.T @ (flat @ down.T)) * ctx.scale if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_down, grad_up, None, grad_lengths, None


def _of_lengths(grad: Tensor, output: Tensor, bias: Tensor | None, lengths: Tensor) -> Tensor:
    """The gradient of DoRA's lengths: an output without its bias is m times what it is for a length of 1."""
    flat = output.reshape(-1, output.shape[-1])
    without = flat if bias is None else flat - bias
    return (grad.to(lengths.dtype) * without.to(lengths.dtype)).sum(0) / lengths


def _beside(x: Tensor, weight: Tensor, bias: Tensor | None, low: _Low) -> tuple[Tensor, Tensor, Tensor]:
    """The output (…, out), the input as (tokens, in), and what A makes of it, (tokens, rank)."""
    flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    inner = flat @ low.down.T
    output = F.linear(flat, weight, bias if low.excess is None else None).addmm_(inner, low.scaled_up.T)
    if low.excess is not None:
        output.addcmul_(output, low.excess)
        if bias is not None:
            output += bias
    return output.view(*x.shape[:-1], -1), flat, inner


class _BesideLinear(torch.autograd.Function):
    """The same with A and B beside the weight, in W's type."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        low: _Low,
        scale: float,
        lengths: Tensor | None,
    ) -> Tensor:
        output, flat, inner = _beside(x, weight, bias, low)
        kept = None if lengths is None else output
        ctx.save_for_backward(flat, inner, weight, bias, down, up, lengths, kept)
        ctx.low, ctx.scale, ctx.like = low, scale, x
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, bias, down, up, lengths, output = ctx.saved_tensors
        low = ctx.low
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (tokens, out)
        grad_lengths = _of_lengths(grad, output, bias, lengths) if ctx.needs_input_grad[7] else None
        if low.excess is not None:
            grad = torch.addcmul(grad, grad, low.excess)
        grad_inner = grad @ low.scaled_up  # (tokens, rank)
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, low.down).view(ctx.like.shape).to(ctx.like.dtype)
        if ctx.needs_input_grad[3]:
            grad_down = (grad_inner.T @ flat).to(down.dtype)
        if ctx.needs_input_grad[4]:
            grad_up = (grad.T @ inner).to(up.dtype) * ctx.scale
        return grad_x, None, None, grad_down, grad_up, None, None, grad_lengths


@dataclass(frozen=True, slots=True)
class _Low:
    """An adapter in the weight's type: A, s·B, and with DoRA what every output is multiplied with, less 1.

    Less 1, since next to 1 most of what 16 bits have would go to the 1.
    """

    down: Tensor
    scaled_up: Tensor
    excess: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Fold:
    """How a map computes for a while: with c·(W + s·BA), or with A and B in W's type beside it.

    With DoRA ``lengths`` are the trained ones, (out,), and ``factor`` is c of a folded weight.
    """

    down: Tensor
    up: Tensor
    scale: float
    folded: Tensor | None = None
    low: _Low | None = None
    lengths: Tensor | None = None
    factor: Tensor | None = None


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
            arguments = (x, base.weight, base.bias, fold.down, fold.up, fold.low, fold.scale, fold.lengths)
            return _BesideLinear.apply(*arguments)  # type: ignore[no-untyped-call]
        return _FoldedLinear.apply(  # type: ignore[no-untyped-call]
            x, fold.folded, base.bias, fold.down, fold.up, fold.scale, fold.lengths, fold.factor
        )


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
    variant = layer.lora_variant.get(adapter)
    if layer.disable_adapters or layer.merged or not (variant is None or isinstance(variant, DoraLinearVariant)):
        return None
    weight = cast(Tensor, base.weight)
    if torch.is_autocast_enabled(weight.device.type):
        return None
    if layer.training and not isinstance(layer.lora_dropout[adapter], nn.Identity):
        return None
    down = cast(Tensor, layer.lora_A[adapter].weight)
    up = cast(Tensor, layer.lora_B[adapter].weight)
    lengths = None if variant is None else cast(Tensor, layer.lora_magnitude_vector[adapter].weight)
    whole = weight.shape == (up.shape[0], down.shape[1]) and is_whole(weight)
    if not whole or down.dtype != up.dtype or (lengths is not None and lengths.dtype != down.dtype):
        return None
    scale = float(layer.scaling[adapter])
    if weight.dtype in (torch.bfloat16, torch.float16):
        excess = None
        if lengths is not None:  # measured in the adapter's type, as peft does
            excess = (_factor(torch.addmm(weight.to(down.dtype), up, down, alpha=scale), lengths) - 1).to(weight.dtype)
        return _Fold(
            down, up, scale, low=_Low(down.to(weight.dtype), (up * scale).to(weight.dtype), excess), lengths=lengths
        )
    if weight.dtype != down.dtype:
        return None
    folded = torch.addmm(weight, up, down, alpha=scale)
    if lengths is None:
        return _Fold(down, up, scale, folded=folded)
    factor = _factor(folded, lengths)
    return _Fold(down, up, scale, folded=folded.mul_(factor[:, None]), lengths=lengths, factor=factor)


def _factor(rows: Tensor, lengths: Tensor) -> Tensor:
    """What every row is multiplied with to have its trained length, (out,)."""
    factor: Tensor = lengths / torch.linalg.vector_norm(rows, dim=1)
    return factor
