"""What every test has: no network, few threads, and a tiny model that is made in milliseconds."""

from __future__ import annotations

import os

# Before transformers is imported anywhere: it reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model

torch.set_num_threads(2)

WORDS = (
    "hello hi yes no please thanks bye I you we want need have buy like the a is it this that for my your with "
    "red blue green small large cheap good shoes hat coat bag price what which how much one two three ? ! . ,"
).split()


@pytest.fixture
def tiny_chat_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer model of width 32 and its tokenizer, fresh for each test; its words are the ones above."""
    config = ScratchConfig(hidden_size=32, layers=2, heads=2, vocabulary=list(WORDS), max_length=128)
    model, tokenizer = make_scratch_model(config, seed=0)
    return model.eval(), tokenizer
