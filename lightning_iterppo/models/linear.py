"""A linear map that is as fast for a few rows as for many.

Generation multiplies some dozens of rows with each weight at a time. On a processor the library behind ``F.linear``
then reaches two thirds of what it reaches with hundreds of rows; the same product with its sides exchanged does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

# On two cores with AVX2 the exchanged product was a third faster with 32 to 128 rows, slower with 8, the same with 400.
_FEWEST, _MOST = 16, 256


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: (…, in) to (…, out)."""
    rows = x.numel() // x.shape[-1]
    plain = not x.is_cpu or torch.is_grad_enabled() or not x.dtype == weight.dtype == torch.float32
    plain = plain or torch.compiler.is_compiling()  # which would compile once more for each number of rows named here
    if plain or not _FEWEST <= rows <= _MOST or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    product = (weight @ x.reshape(rows, -1).T).T.contiguous()
    if bias is not None:
        product += bias
    return product.view(*x.shape[:-1], -1)


def is_whole(weight: Tensor) -> bool:
    """Whether a weight is a plain tensor, and not a shard of one or something quantised.

    One without memory is too: `lightning_iterppo.planning` computes with such ones what is computed with real ones.
    """
    return type(weight.data) in (Tensor, FakeTensor)


class FewRowsLinear(nn.Linear):
    """An `nn.Linear` that computes with `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return linear(input, self.weight, self.bias)


def use_few_rows(module: nn.Module) -> None:
    """Makes every plain linear map inside a `FewRowsLinear`: the same weights under the same names."""
    for each in module.modules():
        if type(each) is nn.Linear:
            each.__class__ = FewRowsLinear
