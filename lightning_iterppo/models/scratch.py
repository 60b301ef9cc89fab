"""A tiny language model made from nothing: a few layers of Llama over a vocabulary of whole words.

For the `probe` recipe and for tests: it is made in milliseconds, needs no file and no network, and goes through the
same code as a pretrained model: the tokenizer has a chat template, an end token and exact decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_iterppo.errors import ConfigError

__all__ = ["SPECIAL_TOKENS", "ScratchConfig", "make_scratch_model", "make_scratch_tokenizer"]

SPECIAL_TOKENS = ("<pad>", "<end>", "<system>", "<customer>", "<agent>", "<unk>")

# About how long an output embedding is.
_OUTPUT_LENGTH = 2.0

# One message is its speaker's token, its words, and the end token; the agent's turn is opened by its token alone.
_CHAT_TEMPLATE = (
    "{%- set speakers = {'system': '<system>', 'user': '<customer>', 'assistant': '<agent>'} -%}"
    "{%- for message in messages -%}"
    "{{- speakers[message['role']] + ' ' + message['content'] + ' <end> ' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<agent> ' -}}{%- endif -%}"
)


@dataclass
class ScratchConfig:
    """What the tiny model is made of.

    Args:
        hidden_size: the width, a multiple of twice ``heads``.
        layers: the number of transformer layers.
        heads: attention heads of a layer.
        vocabulary: every word it can read and say; words have no spaces. Special tokens are added.
        max_length: the longest prompt and response together, in tokens.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    vocabulary: list[str] = field(default_factory=list)
    max_length: int = 256


def make_scratch_tokenizer(vocabulary: Sequence[str], max_length: int = 256) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: one token a word, and decoding puts one space between words.

    Raises:
        ConfigError: there is no word, or one of them cannot be a word.
    """
    words = list(dict.fromkeys(vocabulary))
    if not words:
        raise ConfigError("model.scratch.vocabulary is empty: list every word the model shall know")
    for word in words:
        if not word or word != "".join(word.split()) or word in SPECIAL_TOKENS:
            special = " ".join(SPECIAL_TOKENS)
            raise ConfigError(f"model.scratch.vocabulary: {word!r} cannot be a word: no spaces, none of {special}")
    ids = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    # Only white space separates words: punctuation stays with its word, so that decoding gives back what was encoded.
    tokenizer.pre_tokenizer = Split(Regex(r"\s+"), behavior="removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<system>", "<customer>", "<agent>"],
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )


def make_scratch_model(config: ScratchConfig, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A tiny Llama with random float32 weights and its tokenizer. The same seed gives the same weights.

    The global random state is as it was before.

    Raises:
        ConfigError: the sizes do not fit together, or the vocabulary cannot be one.
    """
    if min(config.hidden_size, config.layers, config.heads, config.max_length) < 1:
        raise ConfigError("model.scratch: hidden_size, layers, heads and max_length must be at least 1")
    if config.hidden_size % (2 * config.heads):
        # Rotary positions turn pairs of a head's numbers, so each head needs an even width.
        raise ConfigError(
            f"model.scratch.hidden_size={config.hidden_size} must be a multiple of 2 × heads={config.heads}"
        )
    tokenizer = make_scratch_tokenizer(config.vocabulary, config.max_length)
    model_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_length,
        # Large models start from 0.02, which is nearly nothing at this width: layers that do little at first learn
        # late, and the output embedding, which LoRA leaves as it is, could make no word likely.
        initializer_range=config.hidden_size**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(model_config)
    # A word's logit is at most √hidden_size times the length of its output embedding. LoRA leaves those as they are: at
    # length 1 the policy could not be sure enough of a word, and went on saying others now and then.
    model.lm_head.weight.data.mul_(_OUTPUT_LENGTH)
    return model, tokenizer
