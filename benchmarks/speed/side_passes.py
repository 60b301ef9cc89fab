"""A side of ``limit.py``: the trunk passes that the mathematics of one update cannot do without, and nothing else.

With E episodes of P prompt and R response tokens and N epochs, in a later round of an improvement: the prompts once
without gradients and R steps of E rows for the responses; one pass of all tokens under the critic and one under the
anchor; N passes forward and backward under the policy. Log-probabilities and values of the sampler are known from
generation, so that they need none. No adapter, no head, no loss, no optimiser: a frozen trunk whose backward pass is
that of its input.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from sides import serve
from transformers import AutoModelForCausalLM, DynamicCache

from lightning_iterppo.models.backbones import resolve_dtype


def main() -> None:
    """Loads, and serves the passes of updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path, help="a JSON file that update.py makes")
    parser.add_argument("--top-layers", type=int, help="the layers above the frozen ones, whose passes repeat")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text(encoding="utf-8"))
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=resolve_dtype(arguments.dtype)).model
    model.requires_grad_(False)
    layers = model.layers
    top = arguments.top_layers or len(layers)
    episodes, prompt, response = work["episodes"], work["prompt_tokens"], work["response_tokens"]
    tokens = torch.randint(0, model.config.vocab_size, (episodes, prompt + response))
    embedded = model.embed_tokens(tokens)

    def run(part: Any, inputs: torch.Tensor, cache: Any = None) -> torch.Tensor:
        model.layers = part
        try:
            found: torch.Tensor = model(
                inputs_embeds=inputs, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state
        finally:
            model.layers = layers
        return found

    def update() -> None:
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            run(layers, embedded[:, :prompt], cache)
            for step in range(prompt, prompt + response - 1):
                run(layers, embedded[:, step : step + 1], cache)
            below = run(layers[:-top], embedded) if top < len(layers) else embedded
            run(layers[-top:], below)  # the critic
            run(layers[-top:], below)  # the anchor
        micro = work["micro_batch"]
        for start in [*range(0, episodes, micro)] * work["ppo_epochs"]:
            inputs = below[start : start + micro].clone().requires_grad_()
            run(layers[-top:], inputs).sum().backward()

    serve(update)


if __name__ == "__main__":
    main()
