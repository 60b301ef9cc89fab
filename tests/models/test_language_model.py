"""Variants over one set of base weights: they swap, copy, train and save without touching each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from lightning_iterppo.models.language_model import VARIANTS, LanguageModel
from lightning_iterppo.models.logprobs import response_logprobs
from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model
from lightning_iterppo.models.tree import ROOT, TokenTree, collate_trees

Make = Callable[..., LanguageModel]
Stir = Callable[..., None]
WORDS = [f"word{number}" for number in range(40)]
KINDS = pytest.mark.parametrize("kind", ["full", "lora", "dora"])


def a_tree(branch: bool = True) -> TokenTree:
    tree = TokenTree()
    state = tree.add([3, 6, 7, 8], ROOT)
    tree.add([9, 10, 1], state, action=True)
    if branch:
        tree.add([11, 12], state, action=True)
    return tree


@torch.no_grad()
def logprobs(model: LanguageModel, *trees: TokenTree) -> Tensor:
    batch = collate_trees(trees or [a_tree()], pad_token_id=0)
    return response_logprobs(model.hidden(batch), batch, model.logits)[0]


def weights(model: LanguageModel, variant: str) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.variant_tensors(variant).items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- swapping and copying --------------------------------------------------------------------------------------------


@KINDS
def test_every_variant_begins_as_the_base_model(make_language_model: Make, kind: str) -> None:
    model = make_language_model(kind, vocabulary=WORDS)
    base, _ = make_scratch_model(ScratchConfig(hidden_size=32, layers=2, heads=2, vocabulary=WORDS), seed=0)
    path = a_tree().path(1)
    with torch.no_grad():
        table = base.eval()(torch.tensor([path])).logits[0].log_softmax(-1)
    expected = torch.stack([table[place - 1, path[place]] for place in (4, 5, 6)])
    for variant in VARIANTS:
        with model.using(variant):
            torch.testing.assert_close(logprobs(model)[0], expected, atol=1e-5, rtol=0)


@KINDS
def test_using_swaps_the_weights_and_puts_them_back(make_language_model: Make, stir: Stir, kind: str) -> None:
    model = make_language_model(kind)
    model.copy("policy", "anchor")
    before = logprobs(model)
    stir(model, "policy")
    after = logprobs(model)
    assert not torch.allclose(before, after, atol=1e-3)
    with model.using("anchor"):
        assert model.active == "anchor"
        torch.testing.assert_close(logprobs(model), before, atol=0, rtol=0)
        with model.using("policy"):
            torch.testing.assert_close(logprobs(model), after, atol=0, rtol=0)
        torch.testing.assert_close(logprobs(model), before, atol=0, rtol=0)
    assert model.active == "policy"
    torch.testing.assert_close(logprobs(model), after, atol=0, rtol=0)


@KINDS
def test_an_error_inside_using_puts_the_weights_back_too(make_language_model: Make, stir: Stir, kind: str) -> None:
    model = make_language_model(kind)
    model.copy("policy", "anchor")
    stir(model, "policy")
    after = logprobs(model)
    with pytest.raises(RuntimeError, match="boom"), model.using("anchor"):
        raise RuntimeError("boom")
    assert model.active == "policy"
    torch.testing.assert_close(logprobs(model), after, atol=0, rtol=0)


@KINDS
def test_a_copy_is_equal_and_goes_its_own_way(make_language_model: Make, stir: Stir, kind: str) -> None:
    model = make_language_model(kind)
    stir(model, "policy")
    for _ in range(2):  # the first copy makes room, the second one overwrites
        model.copy("policy", "critic")
        assert equal(weights(model, "policy"), weights(model, "critic"))
        copied = weights(model, "critic")
        stir(model, "policy")
        assert equal(weights(model, "critic"), copied)
    # From a variant that is not active into one that is.
    model.copy("critic", "policy")
    assert equal(weights(model, "policy"), copied)


def test_a_discarded_variant_frees_its_weights_and_is_made_again(make_language_model: Make, stir: Stir) -> None:
    model = make_language_model("full")
    model.copy("policy", "anchor")
    stir(model, "policy")
    model.discard("anchor")
    model.copy("policy", "anchor")
    assert equal(weights(model, "anchor"), weights(model, "policy"))


def test_with_lora_nothing_is_discarded(make_language_model: Make, stir: Stir) -> None:
    model = make_language_model("lora")
    stir(model, "anchor")
    kept = weights(model, "anchor")
    model.discard("anchor")
    assert equal(weights(model, "anchor"), kept)


@KINDS
def test_all_variants_move_together(make_language_model: Make, stir: Stir, kind: str) -> None:
    model = make_language_model(kind)
    model.copy("policy", "critic")
    stir(model, "critic")
    model.to(torch.float64)
    for variant in ("policy", "critic"):
        assert {tensor.dtype for tensor in model.variant_tensors(variant).values()} == {torch.float64}
    with model.using("critic"):
        logprobs(model)


@KINDS
def test_training_one_variant_leaves_the_others_alone(make_language_model: Make, kind: str) -> None:
    model = make_language_model(kind)
    for variant in VARIANTS[1:]:
        model.copy("policy", variant)
    before = {variant: weights(model, variant) for variant in VARIANTS}
    base = {key: p.detach().clone() for key, p in model.named_parameters() if kind == "lora" and ".lora_" not in key}
    for trained in ("critic", "policy"):
        model.activate(trained)
        optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=0.01)
        for _ in range(2):  # LoRA's A has no gradient until B is off zero
            batch = collate_trees([a_tree()], pad_token_id=0)
            loss = -response_logprobs(model.hidden(batch), batch, model.logits)[0].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert not equal(weights(model, trained), before[trained])
        before[trained] = weights(model, trained)
        for variant in VARIANTS:
            assert equal(weights(model, variant), before[variant]), (trained, variant)
    assert all(torch.equal(p, base[key]) for key, p in model.named_parameters() if key in base)


def test_only_the_active_adapter_trains(make_language_model: Make) -> None:
    model = make_language_model("lora", top_layers=1)
    model.activate("critic")
    trainable = [key for key, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == len(model.trainable_parameters()) > 0
    assert all(".lora_" in key and ".critic." in key and ".layers.1." in key for key in trainable)


def test_full_fine_tuning_trains_every_weight(make_language_model: Make) -> None:
    model = make_language_model("full")
    assert len(model.trainable_parameters()) == len(list(model.parameters()))
    with model.using("critic"):  # but the critic makes no logits, and DDP bears no parameter without a gradient
        batch = collate_trees([a_tree()], pad_token_id=0)
        gradients = torch.autograd.grad(model.hidden(batch).square().sum(), model.trainable_parameters())
        assert len(gradients) == len(list(model.parameters())) - 1
    assert len(model.trainable_parameters()) == len(list(model.parameters()))


def test_a_name_that_is_no_variant(make_language_model: Make) -> None:
    with pytest.raises(ValueError, match="unknown variant 'old'; there are policy, anchor"):
        make_language_model("lora").activate("old")


@pytest.mark.parametrize("top", [0, 3])
def test_more_layers_than_there_are(make_language_model: Make, top: int) -> None:
    with pytest.raises(ValueError, match="2 layers"):
        make_language_model("lora", top_layers=top)


# -- features of frozen layers ---------------------------------------------------------------------------------------


def with_gradients(model: LanguageModel, trees: list[TokenTree]) -> tuple[Tensor, list[Tensor]]:
    batch = collate_trees(trees, pad_token_id=0)
    found = response_logprobs(model.hidden(batch), batch, model.logits)[0]
    gradients = torch.autograd.grad(found.sum(), model.trainable_parameters())
    return found.detach(), list(gradients)


@pytest.mark.parametrize("branch", [True, False])
def test_kept_features_change_no_number_and_no_gradient(make_language_model: Make, stir: Stir, branch: bool) -> None:
    model = make_language_model("lora", layers=3, top_layers=1)
    stir(model, "policy")
    assert model.keeps_features
    whole = make_language_model("lora", layers=3, top_layers=1, keep_features=False)
    stir(whole, "policy")
    assert not whole.keeps_features
    longer = a_tree(branch)
    longer.add([20, 21, 22], 1, action=True)
    trees = [a_tree(branch), longer]
    first = with_gradients(model, trees)
    again = with_gradients(model, trees)  # from the features
    alone = with_gradients(model, trees[:1])
    plain = with_gradients(whole, trees)
    for found in (first, again):
        torch.testing.assert_close(found[0], plain[0], atol=1e-5, rtol=0)
        for gradient, expected in zip(found[1], plain[1], strict=True):
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    count = len(trees[0].actions)
    torch.testing.assert_close(alone[0], plain[0][:count, :3], atol=1e-5, rtol=0)


def test_features_are_computed_once_for_all_variants(make_language_model: Make, stir: Stir) -> None:
    model = make_language_model("lora", layers=3, top_layers=1)
    stir(model, "policy")
    passes = [0, 0, 0]
    for index, layer in enumerate(model.trunk.layers):  # type: ignore[arg-type]
        layer.register_forward_hook(lambda *_, index=index: passes.__setitem__(index, passes[index] + 1))
    trees = [a_tree(), a_tree(branch=False)]
    with_gradients(model, trees)
    different = []
    for variant in ("policy", "anchor", "critic"):
        with model.using(variant):
            different.append(logprobs(model, *trees))
    assert passes == [1, 1, 4]
    assert not torch.allclose(different[0], different[1], atol=1e-3)
    assert len(model.trunk.layers) == 3  # type: ignore[arg-type]  # the layers are whole again


def test_features_belong_to_one_model(make_language_model: Make) -> None:
    tree = a_tree()
    logprobs(make_language_model("lora", top_layers=1, seed=0), tree)
    other = make_language_model("lora", top_layers=1, seed=5)
    torch.testing.assert_close(logprobs(other, tree), logprobs(other, a_tree()), atol=0, rtol=0)


def test_nothing_is_kept_where_the_lowest_layer_trains(make_language_model: Make) -> None:
    for model in (make_language_model("lora"), make_language_model("lora", top_layers=2), make_language_model("full")):
        tree = a_tree()
        logprobs(model, tree)
        assert not model.keeps_features
        assert tree.features is None


# -- files -----------------------------------------------------------------------------------------------------------


@KINDS
def test_a_saved_variant_is_read_back(make_language_model: Make, stir: Stir, tmp_path: Path, kind: str) -> None:
    model = make_language_model(kind)
    model.copy("policy", "critic")
    stir(model, "critic")
    model.save_variant("critic", tmp_path / "critic")
    assert model.active == "policy"
    other = make_language_model(kind)
    for variant in ("policy", "anchor"):  # the active one, and one that may have to be made first
        other.load_variant(variant, tmp_path / "critic")
        assert equal(weights(other, variant), weights(model, "critic"))


def test_a_saved_adapter_is_pefts(make_language_model: Make, stir: Stir, tmp_path: Path) -> None:
    model = make_language_model("lora")
    stir(model, "policy")
    model.save_variant("policy", tmp_path)
    base = make_language_model("full").causal_lm
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    ids = torch.tensor([[3, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.causal_lm(ids).logits, atol=1e-5, rtol=0)
    assert all(p.requires_grad == (".policy." in key) for key, p in model.named_parameters())  # it trains on


@KINDS
def test_a_merged_model_has_the_policys_logits(
    make_language_model: Make, stir: Stir, tmp_path: Path, kind: str
) -> None:
    model = make_language_model(kind)
    stir(model, "policy")
    ids = torch.tensor([[3, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = model.causal_lm(ids).logits
        model.activate("critic")
        model.save_merged("policy", tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-4, rtol=0)


@KINDS
def test_a_directory_without_weights(make_language_model: Make, tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match="holds no"):
        make_language_model(kind).load_variant("policy", tmp_path)


@pytest.mark.parametrize("saved", [{"rank": 8}, {"rank": 4, "top_layers": 1}, {"rank": 4, "hidden": 16}])
def test_an_adapter_of_another_shape(make_language_model: Make, tmp_path: Path, saved: dict[str, int]) -> None:
    make_language_model("lora", **saved).save_variant("policy", tmp_path)
    model = make_language_model("lora", rank=4)
    before = weights(model, "policy")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        model.load_variant("policy", tmp_path)
    assert equal(weights(model, "policy"), before)


@pytest.mark.parametrize("saved", [{"hidden": 16}, {"layers": 1}])
def test_a_full_model_of_another_shape(make_language_model: Make, tmp_path: Path, saved: dict[str, int]) -> None:
    make_language_model("full", **saved).save_variant("policy", tmp_path)
    model = make_language_model("full")
    before = weights(model, "policy")
    with pytest.raises(ValueError, match="another model"):
        model.load_variant("policy", tmp_path)
    assert equal(weights(model, "policy"), before)
