"""An engine: transformers' `generate` samples from merged models, in this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_iterppo import ChatRenderer, PolicyFiles, Response, Sampling


class GenerateServer:
    """Takes whole models from the disk, as a server does."""

    takes = "merged"

    def load(self, policy: PolicyFiles, before: PolicyFiles | None) -> None:
        """Nothing: `engine` reads the files."""

    def engine(self, policy: PolicyFiles, seed: int, renderer: ChatRenderer) -> GenerateEngine:
        """Samples from the policy."""
        return GenerateEngine(AutoModelForCausalLM.from_pretrained(policy.path), seed, renderer)


class GenerateEngine:
    """Samples one response after the other."""

    def __init__(self, model: PreTrainedModel, seed: int, renderer: ChatRenderer) -> None:
        self.model = model.eval()
        self.stop = renderer.stop_token_id
        self.generated_tokens = 0
        self.seed = seed

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int] | None = None
    ) -> list[Response]:
        """One response a prompt, each from its own seed."""
        own = seeds or [self.seed + number for number in range(len(prompts))]
        with torch.random.fork_rng():
            return [self._one(prompt, sampling, seed) for prompt, seed in zip(prompts, own, strict=True)]

    @torch.no_grad()
    def _one(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Response:
        torch.manual_seed(seed)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.stop,
            pad_token_id=self.stop,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = made.sequences[0, len(prompt) :].tolist()
        likely = torch.stack(made.logits)[:, 0].log_softmax(-1)
        self.generated_tokens += len(tokens)
        logprobs = [float(row[token]) for row, token in zip(likely, tokens, strict=True)]
        return Response(tuple(tokens), tuple(logprobs), tokens[-1] == self.stop)
