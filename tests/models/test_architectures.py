"""Architectures other than the default's: every way of computing gives what a plain forward pass of the model gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.adaptation import Adaptation, Computing
from lightning_iterppo.models.backbones import Backbone
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.logprobs import response_logprobs
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer
from lightning_iterppo.models.tree import collate_trees

WORDS = [f"word{number}" for number in range(40)]
#: Far shorter than the conversations below.
WINDOW = 6
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: LlamaConfig(vocab_size=size, tie_word_embeddings=False, **COMMON),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, tie_word_embeddings=True, **COMMON),
    "qwen2-window": lambda size: Qwen2Config(
        vocab_size=size,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=2,
        **{key: value for key, value in COMMON.items() if key != "head_dim"},
    ),
    "mistral-window": lambda size: MistralConfig(vocab_size=size, sliding_window=WINDOW, **COMMON),
    "gemma3": lambda size: Gemma3TextConfig(
        vocab_size=size, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2, **COMMON
    ),
    "gemma2": lambda size: Gemma2Config(
        vocab_size=size, sliding_window=WINDOW, query_pre_attn_scalar=8, final_logit_softcapping=3.0, **COMMON
    ),
    "cohere": lambda size: CohereConfig(
        vocab_size=size, logit_scale=0.25, **{key: value for key, value in COMMON.items() if key != "head_dim"}
    ),
    "granite": lambda size: GraniteConfig(
        vocab_size=size, logits_scaling=4.0, **{key: value for key, value in COMMON.items() if key != "head_dim"}
    ),
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=128),
}
TALK = Conversation(
    "one",
    (
        Turn("word1 word2 word3", "word4 word5", Suggestion("word9 word8 word7", (), (), "a"), "rejected"),
        Turn("word6 word5 word4 word3", "word3 word3", Suggestion("word3 word3", (), (), "a")),
        Turn("word6 word1", "word2", Suggestion("word20", (), (), "a"), "edited"),
    ),
    outcome=0.0,
)
SHORT = Conversation("two", (Turn("word1", "word2 word3"),), outcome=0.0)


@pytest.fixture(params=list(CONFIGS))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    tokenizer = make_scratch_tokenizer(WORDS)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param](len(tokenizer))).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3  # so that every token matters
    return Backbone(model, tokenizer, request.param, None)


def make(
    backbone: Backbone, kind: Any, stir: Any, top_layers: int | None = None, computing: Computing | None = None
) -> LanguageModel:
    how = Adaptation(kind, 4, 8, top_layers=top_layers)
    model = LanguageModel(backbone, how, computing)
    stir(model, POLICY)
    return model


@torch.no_grad()
def plainly(model: PreTrainedModel, prompt: list[int], response: tuple[int, ...]) -> Tensor:
    """Log-probabilities by one forward pass of the model as transformers runs it."""
    ids = torch.tensor([[*prompt, *response]])
    table = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return torch.stack([table[len(prompt) - 1 + place, token] for place, token in enumerate(response)])


@pytest.mark.parametrize(("kind", "top_layers"), [("full", None), ("lora", None), ("lora", 2), ("dora", None)])
@pytest.mark.parametrize("share", [True, False])
def test_trees_give_what_a_plain_pass_gives(
    backbone: Backbone, stir: Any, kind: str, top_layers: int | None, share: bool
) -> None:
    model = make(backbone, kind, stir, top_layers, Computing(share_prefixes=share))
    renderer = ChatRenderer(model.tokenizer)
    rendered = [renderer.render(talk) for talk in (TALK, SHORT)]
    batch = collate_trees([each.tree for each in rendered], renderer.pad_token_id)
    assert batch.attention_mask is not None
    for _ in range(2):  # the second time from kept features, where there are any
        with torch.no_grad():
            found = response_logprobs(model.hidden(batch), batch, model.logits)[0]
        rows = iter(found)
        for each in rendered:
            for state, action in zip(each.states, each.actions, strict=True):
                said = each.tree.segments[action].token_ids
                expected = plainly(model.causal_lm, each.tree.path(state), said)
                assert next(rows)[: len(said)] == pytest.approx(expected, abs=2e-5)


def test_chains_give_what_a_plain_pass_gives(backbone: Backbone, stir: Any) -> None:
    """Without a branch there is no mask of ours."""
    model = make(backbone, "full", stir)
    renderer = ChatRenderer(model.tokenizer)
    chain = Conversation("chain", tuple(Turn(turn.customer, turn.message) for turn in TALK.turns), outcome=0.0)
    rendered = renderer.render(chain)
    batch = collate_trees([rendered.tree, renderer.render(SHORT).tree], renderer.pad_token_id)
    assert batch.attention_mask is None
    with torch.no_grad():
        found = response_logprobs(model.hidden(batch), batch, model.logits)[0]
    for row, state, action in zip(found, rendered.states, rendered.actions, strict=False):
        said = rendered.tree.segments[action].token_ids
        assert row[: len(said)] == pytest.approx(plainly(model.causal_lm, rendered.tree.path(state), said), abs=2e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_the_engine_says_what_the_model_would(backbone: Backbone, stir: Any, keep: bool) -> None:
    """Prompts of several lengths, three calls that go on from each other, rows that end at their own time."""
    model = make(backbone, "lora", stir)
    renderer = ChatRenderer(model.tokenizer)
    engine = LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=0, keep=keep, rows=2)
    prompts = [renderer.encode(text) for text in ("word1 word2 word3 word4 word5 word6 word7", "word9", "word3 word2")]
    for _ in range(3):
        responses = engine.generate(prompts, Sampling(max_new_tokens=5))
        for prompt, response in zip(prompts, responses, strict=True):
            expected = plainly(model.causal_lm, prompt, response.token_ids)
            assert torch.tensor(response.logprobs) == pytest.approx(expected, abs=2e-5)
        prompts = [
            [*prompt, *response.token_ids, *renderer.encode("word11 word12")]
            for prompt, response in zip(prompts, responses, strict=True)
        ]


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
def test_gradients_reach_what_is_trained(backbone: Backbone, stir: Any, kind: str) -> None:
    model = make(backbone, kind, stir)
    model.activate(POLICY)
    renderer = ChatRenderer(model.tokenizer)
    batch = collate_trees([renderer.render(TALK).tree], renderer.pad_token_id)
    logprobs, _, _ = model.response_logprobs(model.hidden(batch), batch)
    logprobs[batch.action_mask].sum().backward()
    moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.trainable_parameters()]
    assert moved and all(moved)
