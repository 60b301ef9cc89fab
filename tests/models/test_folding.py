"""Adapters folded into the weights: the same outputs and gradients as beside them, and only where that is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_iterppo.models.folding import Folding, _BesideLinear, _Low
from lightning_iterppo.models.language_model import ANCHOR, CRITIC, POLICY, LanguageModel
from lightning_iterppo.models.tree import ROOT, TokenTree, TreeBatch, collate_trees


def a_batch() -> TreeBatch:
    tree = TokenTree()
    tree.add([5, 6], tree.add([1, 2, 3], ROOT), action=True)
    tree.add([4, 7, 8], 0, action=True)
    return collate_trees([tree], pad_token_id=0)


KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])


@pytest.fixture(params=["lora", "dora"])
def models(
    request: pytest.FixtureRequest, make_language_model: Callable[..., LanguageModel], stir: Callable[..., None]
) -> list[LanguageModel]:
    """The same model twice, folding and not."""
    made = [make_language_model(request.param, top_layers=1, fold=fold).double() for fold in (True, False)]
    for model in made:
        for seed, variant in enumerate((POLICY, ANCHOR, CRITIC)):
            stir(model, variant, seed=seed + 1)
    return made


def outputs(model: LanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    hidden = model.hidden(a_batch())
    (hidden[..., ::2] ** 2).sum().backward()  # of half of it: the norm of all is what it is
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_outputs_and_gradients_are_those_of_the_adapter(models: list[LanguageModel]) -> None:
    for variant in (POLICY, CRITIC):
        for model in models:
            model.activate(variant)
        (fast, fast_grads), (plain, plain_grads) = map(outputs, models)
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
        assert fast_grads.keys() == plain_grads.keys()
        each = 2 if models[0].adaptation.kind == "lora" else 3
        assert len(fast_grads) == 7 * each, "A and B of seven maps of one layer, and with DoRA their lengths"
        for name, grad in plain_grads.items():
            torch.testing.assert_close(fast_grads[name], grad, rtol=1e-9, atol=1e-10)


def test_folding_is_what_computes(models: list[LanguageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("folded")

    monkeypatch.setattr("lightning_iterppo.models.folding._FoldedLinear.apply", broken)
    with pytest.raises(AssertionError, match="folded"):
        models[0].hidden(a_batch())
    models[1].hidden(a_batch())


def test_a_step_of_the_optimiser_shows_in_the_next_pass(models: list[LanguageModel], stir: Callable[..., None]) -> None:
    before = models[0].hidden(a_batch()).detach()
    for model in models:
        stir(model, POLICY, seed=9)
    after = models[0].hidden(a_batch()).detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, models[1].hidden(a_batch()).detach(), rtol=1e-10, atol=1e-10)


def test_the_weights_are_untouched_and_nothing_is_kept(models: list[LanguageModel]) -> None:
    model = models[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with model.folded():
        assert model._folding is not None
        assert model._folding.count == 7
    assert model._folding.count == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_exception_inside_leaves_nothing_folded(models: list[LanguageModel]) -> None:
    model = models[0]
    with pytest.raises(RuntimeError, match="stop"), model.folded():
        raise RuntimeError("stop")
    assert model._folding is not None
    assert model._folding.count == 0


@KINDS
def test_what_would_not_be_exact_is_left_beside_the_weights(
    kind: str, make_language_model: Callable[..., LanguageModel]
) -> None:
    def count(model: LanguageModel) -> int:
        with model.folded():
            assert isinstance(model._folding, Folding)
            return model._folding.count

    model = make_language_model(kind)
    assert count(model) == 14
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert count(model) == 0
    with model.model.disable_adapter():  # type: ignore[operator]
        assert count(model) == 0
    for name, parameter in model.named_parameters():
        if "base_layer" in name:
            parameter.data = parameter.data.double()
    assert count(model) == 0, "weights of another type than the adapter's"


def test_another_adapter_inside_is_folded_for_itself(models: list[LanguageModel]) -> None:
    folding, plain = models
    with torch.no_grad():
        with folding.folded():
            with folding.using(CRITIC):
                inner = folding.hidden(a_batch())
            outer = folding.hidden(a_batch())
        with plain.using(CRITIC):
            torch.testing.assert_close(inner, plain.hidden(a_batch()), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(outer, plain.hidden(a_batch()), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(inner, outer)


@KINDS
def test_dropout_keeps_its_noise(kind: str, make_language_model: Callable[..., LanguageModel]) -> None:
    model = make_language_model(kind, dropout=0.5)
    assert model._folding is not None
    with model.train().folded():
        assert model._folding.count == 0
    with model.eval().folded():
        assert model._folding.count == 14


def in_bfloat16(model: LanguageModel) -> LanguageModel:
    """The frozen weights in 16 bits, the adapters in 32: as a pretrained model is loaded where that is fast."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    return model


@KINDS
def test_beside_weights_of_16_bits_an_adapter_computes_in_16_bits_too(
    kind: str, make_language_model: Callable[..., LanguageModel], stir: Callable[..., None]
) -> None:
    made = [make_language_model(kind, fold=fold) for fold in (True, False, False)]
    for model in made:
        stir(model, POLICY, seed=1)
        in_bfloat16(model)
    with made[0].folded():
        assert made[0]._folding is not None
        assert made[0]._folding.count == 14
    made[2].float()  # the same numbers, with nothing rounded on the way
    (fast, fast_grads), (plain, plain_grads), (exact, exact_grads) = map(outputs, made)
    assert fast.dtype == torch.bfloat16
    assert (fast - exact).norm() <= 1.2 * (plain - exact).norm() <= 0.02 * exact.norm()
    assert fast_grads.keys() == exact_grads.keys()
    for name, grad in exact_grads.items():
        assert fast_grads[name].dtype == torch.float32
        assert (fast_grads[name] - grad).norm() <= 1.5 * (plain_grads[name] - grad).norm() + 0.02 * grad.norm(), name


def test_a_small_adapter_is_not_rounded_away_beside_weights_of_16_bits(
    make_language_model: Callable[..., LanguageModel], stir: Callable[..., None]
) -> None:
    model = make_language_model("lora")
    linear = next(m for m in model.modules() if hasattr(m, "lora_A"))
    down, up = linear.lora_A[POLICY].weight, linear.lora_B[POLICY].weight
    linear.base_layer.weight.data = torch.ones_like(linear.base_layer.weight).bfloat16()
    # Each entry that the adapter adds is a tenth of the last bit of a 1 in bfloat16.
    down.data, up.data = torch.full_like(down, 0.01), torch.full_like(up, 0.0008 / 0.01 / len(down) / 2)
    x = torch.eye(down.shape[1], dtype=torch.bfloat16)[:1] * 0
    x[0, 0], x[0, 1] = 1.0, -1.0
    with torch.no_grad(), model.folded():
        assert linear(x).abs().max() == 0
    down.data[:, 1] = 0
    with torch.no_grad(), model.folded():
        torch.testing.assert_close(linear(x).float(), torch.full((1, len(up)), 0.0008), rtol=0.02, atol=0)


def test_a_length_that_hardly_moved_is_not_rounded_away_beside_weights_of_16_bits(
    make_language_model: Callable[..., LanguageModel],
) -> None:
    model = make_language_model("dora")
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    lengths = layer.lora_magnitude_vector[POLICY].weight
    weight = layer.base_layer.weight
    weight.data = torch.zeros_like(weight).bfloat16()
    weight.data[:, 0], weight.data[:, 1] = 1.0, -1.0
    x = torch.zeros(1, weight.shape[1], dtype=torch.bfloat16)
    x[0, 0], x[0, 1] = 1.0, 0.99  # the output is 0.01, which 16 bits tell from 0.01 and a two-hundredth of it
    lengths.data = torch.full_like(lengths, 2**0.5)
    with torch.no_grad():
        with model.folded():
            before = layer(x).float()
        lengths.data *= 1.01
        with model.folded():
            after = layer(x).float()
    torch.testing.assert_close(after / before, torch.full_like(before, 1.01), rtol=0.004, atol=0)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_the_map_beside_a_weight_is_peft_s_formula(bias: bool, lengths: bool) -> None:
    torch.manual_seed(0)
    x, weight, down, up = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 5), (4, 5), (2, 5), (4, 2)))
    offset = torch.randn(4, dtype=torch.float64) if bias else None
    trained = (torch.rand(4, dtype=torch.float64) + 1) if lengths else None
    inputs = [x, down, up] if trained is None else [x, down, up, trained]
    for tensor in inputs:
        tensor.requires_grad_()
    scale = 1.7
    own = (weight + scale * up @ down).norm(dim=1).detach()
    factor = torch.ones(4, dtype=torch.float64) if trained is None else trained / own
    plain = factor * (torch.nn.functional.linear(x, weight) + scale * (x @ down.T) @ up.T)
    plain = plain if offset is None else plain + offset
    low = _Low(down.detach(), scale * up.detach(), None if trained is None else (factor - 1).detach())
    fast = _BesideLinear.apply(x, weight, offset, down, up, low, scale, trained)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad((plain**2).sum(), inputs)
    for found, wanted in zip(torch.autograd.grad((fast**2).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
