"""QLoRA: frozen weights of 4 bits, with the same passes, samples and files as others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_iterppo.composition import compose
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.loading import load_language_model
from lightning_iterppo.models.adaptation import Adaptation
from lightning_iterppo.models.backbones import load_backbone
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model
from lightning_iterppo.models.tree import ROOT, TokenTree, collate_trees

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights need the extra qlora")
WORDS = ["hello", "red", "blue", "yes", "no", "?"]
KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pretrained model, as far as a loader can tell."""
    place = tmp_path_factory.mktemp("model")
    config = ScratchConfig(hidden_size=64, layers=2, heads=2, vocabulary=WORDS, max_length=64)
    model, tokenizer = make_scratch_model(config, seed=0)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def load(directory: Path, kind: Any, dtype: str = "nf4") -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(load_backbone(str(directory), dtype=dtype), Adaptation(kind, rank=4, alpha=8))


def trees() -> list[TokenTree]:
    found = []
    for said in ([4, 5, 6], [5, 4]):
        tree = TokenTree()
        state = tree.add([3, 4, 7], ROOT)
        tree.add(said, state, action=True)
        tree.add([6, 6, 1], state, action=True)
        found.append(tree)
    return found


@KINDS
def test_the_frozen_maps_are_of_four_bits_and_the_adapter_is_not(directory: Path, kind: str) -> None:
    model = load(directory, kind)
    maps = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(maps) == 2 * 7
    assert {m.weight.dtype for m in maps} == {torch.uint8}
    assert {tensor.dtype for tensor in model.variant_tensors(POLICY).values()} == {torch.float32}


@KINDS
def test_it_trains_and_what_it_samples_is_what_a_plain_pass_says(
    directory: Path, kind: str, stir: Callable[..., None]
) -> None:
    model = load(directory, kind)
    stir(model, POLICY, scale=0.05)
    batch = collate_trees(trees(), model.pad_token_id)
    before = {key: tensor.clone() for key, tensor in model.variant_tensors(POLICY).items()}
    logprobs, _, _ = model.response_logprobs(model.hidden(batch), batch)
    (-(logprobs * batch.action_mask).sum()).backward()
    grads = [p.grad for p in model.trainable_parameters()]
    assert grads and all(g is not None and g.isfinite().all() for g in grads)
    assert any(bool((g != 0).any()) for g in grads if g is not None)
    torch.optim.SGD(model.trainable_parameters(), lr=0.1).step()
    assert any((before[key] != tensor).any() for key, tensor in model.variant_tensors(POLICY).items())

    prompt = [3, 4, 7]
    engine = LocalEngine(model, stop_token_id=1, seed=0)
    for response in engine.generate([prompt] * 8, Sampling(max_new_tokens=5)):
        ids = torch.tensor([[*prompt, *response.token_ids]])
        with torch.no_grad():
            plain = model.causal_lm(ids).logits[0].float().log_softmax(-1)
        for place, (token, said) in enumerate(zip(response.token_ids, response.logprobs, strict=True), len(prompt) - 1):
            assert float(plain[place, token]) == pytest.approx(said, abs=0.03)  # bfloat16


@KINDS
def test_its_adapter_is_a_file_like_others_and_merges_into_the_whole_weights(
    directory: Path, kind: str, stir: Callable[..., None], tmp_path: Path
) -> None:
    model = load(directory, kind)
    stir(model, POLICY, scale=0.05)
    model.save_variant(POLICY, tmp_path / "policy")
    again = load(directory, kind)
    again.load_variant(POLICY, tmp_path / "policy")
    for key, tensor in model.variant_tensors(POLICY).items():
        torch.testing.assert_close(again.variant_tensors(POLICY)[key], tensor)
    whole = load(directory, kind, dtype="float32")
    whole.load_variant(POLICY, tmp_path / "policy")
    ids = torch.tensor([[3, 4, 7, 5]])
    expected = whole.causal_lm(ids).logits
    whole.save_merged(POLICY, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_recipe_says_it_in_a_word(directory: Path) -> None:
    words = [f"model.id={directory}", "model.dtype=nf4", "model.adaptation.top_layers=1"]
    model = load_language_model(compose("shop", words))
    assert any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in model.modules())


def test_what_has_no_frozen_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.dtype nf4 is for weights that do not train"):
        compose("shop-full", ["model.dtype=nf4"])
    with pytest.raises(ConfigError, match=r"model.dtype=nf4 is for pretrained weights"):
        load_language_model(compose("probe", ["model.dtype=nf4", "model/adaptation=lora"]))
