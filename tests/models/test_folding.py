"""Adapters folded into the weights: the same outputs and gradients as beside them, and only where that is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_iterppo.models.folding import Folding
from lightning_iterppo.models.language_model import ANCHOR, CRITIC, POLICY, LanguageModel
from lightning_iterppo.models.tree import ROOT, TokenTree, TreeBatch, collate_trees


def a_batch() -> TreeBatch:
    tree = TokenTree()
    tree.add([5, 6], tree.add([1, 2, 3], ROOT), action=True)
    tree.add([4, 7, 8], 0, action=True)
    return collate_trees([tree], pad_token_id=0)


@pytest.fixture
def models(make_language_model: Callable[..., LanguageModel], stir: Callable[..., None]) -> list[LanguageModel]:
    """The same model twice, folding and not."""
    made = [make_language_model("lora", top_layers=1, fold=fold).double() for fold in (True, False)]
    for model in made:
        for seed, variant in enumerate((POLICY, ANCHOR, CRITIC)):
            stir(model, variant, seed=seed + 1)
    return made


def outputs(model: LanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    hidden = model.hidden(a_batch())
    (hidden**2).sum().backward()
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_outputs_and_gradients_are_those_of_the_adapter(models: list[LanguageModel]) -> None:
    for variant in (POLICY, CRITIC):
        for model in models:
            model.activate(variant)
        (fast, fast_grads), (plain, plain_grads) = map(outputs, models)
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
        assert fast_grads.keys() == plain_grads.keys()
        assert len(fast_grads) == 14, "A and B of seven maps of one layer"
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


def test_what_would_not_be_exact_is_left_beside_the_weights(
    make_language_model: Callable[..., LanguageModel],
) -> None:
    def count(model: LanguageModel) -> int:
        with model.folded():
            assert isinstance(model._folding, Folding)
            return model._folding.count

    model = make_language_model("lora")
    assert count(model) == 14
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert count(model) == 0
    with model.model.disable_adapter():  # type: ignore[operator]
        assert count(model) == 0
    halves = make_language_model("lora")
    for name, parameter in halves.named_parameters():
        if "base_layer" in name:
            parameter.data = parameter.data.bfloat16()
    assert count(halves) == 0, "the adapter would be rounded away"


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


def test_dropout_keeps_its_noise(make_language_model: Callable[..., LanguageModel]) -> None:
    model = make_language_model("lora", dropout=0.5)
    assert model._folding is not None
    with model.train().folded():
        assert model._folding.count == 0
    with model.eval().folded():
        assert model._folding.count == 14
