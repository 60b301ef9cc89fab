"""Grouped attention: the same as transformers' own, without copies of keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import sdpa_attention

from lightning_iterppo.generation import local
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models import attention
from lightning_iterppo.models.attention import grouped_attention
from lightning_iterppo.models.backbones import Backbone
from lightning_iterppo.models.language_model import Adaptation, LanguageModel
from lightning_iterppo.models.scratch import make_scratch_tokenizer

PROMPTS = [[3, 6, 7], [3, 6, 7, 8, 9, 10], [4]]


@pytest.fixture
def model() -> LanguageModel:
    """Six heads, two of keys and values."""
    tokenizer = make_scratch_tokenizer(["red", "blue", "hat", "yes", "no"])
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return LanguageModel(Backbone(LlamaForCausalLM(config).eval(), tokenizer, "scratch", None), Adaptation("full"))


@pytest.mark.parametrize("new", [1, 4])
def test_it_gives_what_transformers_gives(model: LanguageModel, new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(3, 10, (3, new), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 1, new, new, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(new, dtype=torch.bool)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        expected = model.trunk(**given).last_hidden_state
        monkeypatch.setattr(sdpa_attention, "repeat_kv", None)
        with model.grouped():
            found = model.trunk(**given).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert model.causal_lm.config._attn_implementation == "sdpa"  # as before


@pytest.mark.parametrize("keep", [True, False])
def test_the_engine_says_the_same_with_and_without(model: LanguageModel, keep: bool) -> None:
    said = []
    for grouped in (True, False):
        engine = LocalEngine(model, stop_token_id=1, seed=0, keep=keep, grouped=grouped)
        prompts = PROMPTS
        for _ in range(3):
            responses = engine.generate(prompts, Sampling(max_new_tokens=6))
            prompts = [[*p, *r.token_ids, 3, 8, 4] for p, r in zip(prompts, responses, strict=True)]
            said.append(responses)
    for with_it, without in zip(said[:3], said[3:], strict=True):
        assert [r.token_ids for r in with_it] == [r.token_ids for r in without]
        for one, other in zip(with_it, without, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_another_attention_is_left_as_it_is(model: LanguageModel) -> None:
    model.causal_lm.set_attn_implementation("eager")
    with model.grouped():
        assert model.causal_lm.config._attn_implementation == "eager"


@pytest.mark.parametrize("new", [1, 5])
def test_few_queries_in_plain_products_are_as_exact_as_16_bits_are(new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(3, new, 6, 8, generator=draw).transpose(1, 2)  # as transformers gives it
    key, value = (torch.randn(3, 2, 40, 8, generator=draw) for _ in range(2))
    mask = torch.rand(3, 1, new, 40, generator=draw) < 0.5
    mask[..., 0] = True
    exact, _ = grouped_attention(torch.nn.Identity(), query, key, value, mask)
    halves = [each.to(torch.bfloat16) for each in (query, key, value)]
    fused, _ = grouped_attention(
        torch.nn.Identity(), halves[0], halves[1][:, :, :40].mT.contiguous().mT, halves[2], mask
    )
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    found, _ = grouped_attention(torch.nn.Identity(), *halves, mask)
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    assert (found - exact).norm() < 2 * (fused - exact).norm()


@pytest.mark.parametrize("keep", [True, False])
def test_an_engine_that_attends_in_plain_products_says_the_same(
    model: LanguageModel, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 32 bits, where it does not pay, but where the two are equal."""
    for module in (attention, local):
        monkeypatch.setattr(module, "products_pay", lambda *_: True)
    plain, counted = attention._in_products, []
    monkeypatch.setattr(attention, "_in_products", lambda *given: counted.append(1) or plain(*given))
    test_the_engine_says_the_same_with_and_without(model, keep)
    assert len(counted) > 20
