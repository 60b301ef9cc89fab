"""The linear map for few rows: the same numbers, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_iterppo.models import linear as module
from lightning_iterppo.models.linear import FewRowsLinear, linear, use_few_rows


@pytest.mark.parametrize("shape", [(1,), (3, 5), (16,), (4, 16), (256,), (2, 200)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_linear_map(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(6, 9, bias=bias)
    x = torch.randn(*shape, 6)
    with torch.no_grad():
        found = linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias))
    assert found.is_contiguous()


def test_gradients_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEWEST", 1)
    layer = nn.Linear(6, 9)
    linear(torch.randn(20, 6), layer.weight, layer.bias).sum().backward()
    assert layer.weight.grad is not None


def test_a_model_keeps_its_weights_and_their_names() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Sequential(nn.Linear(9, 2, bias=False)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(32, 6)
    with torch.no_grad():
        expected = model(x)
        use_few_rows(model)
        torch.testing.assert_close(model(x), expected)
    assert isinstance(model[0], FewRowsLinear)
    assert before.keys() == model.state_dict().keys()
