"""The tiny model from nothing: exact decoding, a chat template that ends the agent's text, reproducible weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.models.scratch import SPECIAL_TOKENS, ScratchConfig, make_scratch_model, make_scratch_tokenizer

WORDS = ["hello", "red", "shoes,", "don't", "Grüße", "€5", "red-blue", "x.y", "?"]
CHAT = [
    {"role": "system", "content": "red shoes,"},
    {"role": "user", "content": "hello ?"},
    {"role": "assistant", "content": "€5 red-blue"},
]


def small(**changes: int) -> ScratchConfig:
    return ScratchConfig(**{"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, **changes}, vocabulary=WORDS)


def test_a_word_is_a_token_and_decoding_gives_it_back() -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    assert len(tokenizer) == len(SPECIAL_TOKENS) + len(WORDS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, len(tokenizer), (12,), generator=generator).tolist()
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids
    text = " ".join(WORDS)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_space_does_not_matter_and_an_unknown_word_is_unknown() -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    assert tokenizer("  hello \n red ")["input_ids"] == tokenizer("hello red")["input_ids"]
    assert tokenizer("hello there")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer("")["input_ids"] == []


def test_special_tokens_are_left_out_of_what_is_said() -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    ids = tokenizer("hello red <end> <pad> <pad>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello red"


def test_a_chat_is_its_prompt_and_the_reply_with_its_end() -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(CHAT)["input_ids"]
    reply = [*tokenizer("€5 red-blue")["input_ids"], tokenizer.eos_token_id]
    assert whole == prompt + reply
    assert tokenizer.decode(prompt) == "<system> red shoes, <end> <customer> hello ? <end> <agent>"


def test_end_and_padding_are_different() -> None:
    model, tokenizer = make_scratch_model(small(), seed=0)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_seed_gives_the_same_weights_and_leaves_chance_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (make_scratch_model(small(), seed)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_it_computes_and_generates() -> None:
    model, tokenizer = make_scratch_model(small(), seed=0)
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_tensors="pt")
    made = model.eval().generate(**prompt, max_new_tokens=4, do_sample=False)
    assert made.shape[1] > prompt["input_ids"].shape[1]


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model, tokenizer = make_scratch_model(small(), seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(CHAT)["input_ids"]
    assert words.apply_chat_template(CHAT)["input_ids"] == ids
    assert words.decode(ids) == tokenizer.decode(ids)
    with torch.no_grad():
        batch = torch.tensor([ids])
        torch.testing.assert_close(loaded(batch).logits, model.eval()(batch).logits)


@pytest.mark.parametrize("vocabulary", [[], ["two words"], [""], ["<end>"], ["tab\tbed"]])
def test_what_cannot_be_a_vocabulary(vocabulary: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"model\.scratch\.vocabulary"):
        make_scratch_model(ScratchConfig(vocabulary=vocabulary), seed=0)


def test_a_word_listed_twice_is_one_token() -> None:
    assert len(make_scratch_tokenizer(["a", "b", "a"])) == len(SPECIAL_TOKENS) + 2


@pytest.mark.parametrize("changes", [{"hidden_size": 15}, {"heads": 3}, {"layers": 0}, {"hidden_size": 18}])
def test_sizes_that_do_not_fit(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"model\.scratch"):
        make_scratch_model(small(**changes), seed=0)
