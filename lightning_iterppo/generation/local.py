"""The local engine: samples from the weights in memory.

It computes no token's keys and values twice. Prompts that begin alike in one call (the states of one conversation, or
one state asked for several responses) are read once; with ``keep=True`` the rows of the last call stay, so that the
next turn of a conversation only reads what is new. Responses that ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_iterppo.generation.cache import SlotCache
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.sampling import Sampling, sample_tokens
from lightning_iterppo.models.language_model import POLICY, LanguageModel


class LocalEngine:
    """Samples responses from a variant of a language model.

    Args:
        model: the model.
        stop_token_id: the token that ends a response.
        seed: the randomness of this engine; the same seed and the same calls give the same responses.
        rows: how many responses are sampled side by side. More is faster and holds more memory.
        keep: keep the keys and values of the last call for prompts that go on from it. The weights must not change
            between two such calls.
        variant: which variant samples.
        on_step: called with the number of tokens of each decoding step, for a progress display.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        stop_token_id: int,
        seed: int,
        rows: int = 64,
        keep: bool = False,
        variant: str = POLICY,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.model = model
        self.stop_token_id = stop_token_id
        self.rows = rows
        self.keep = keep
        self.variant = variant
        self.on_step = on_step
        self.generator = torch.Generator(device=model.device).manual_seed(seed)
        self._generated = 0
        self._cache: SlotCache | None = None
        self._texts: list[tuple[int, ...]] = []  # the tokens that each kept row holds

    @property
    def generated_tokens(self) -> int:
        """How many tokens were sampled so far."""
        return self._generated

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Response]:
        """One response a prompt, in order.

        Raises:
            ValueError: a prompt is empty.
        """
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("a prompt needs at least one token")
        training = self.model.training
        self.model.eval()
        try:
            with self.model.using(self.variant), self.model.folded():
                return self._continue(prompts, sampling) if self.keep else self._fresh(prompts, sampling)
        finally:
            self.model.train(training)

    def _fresh(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Response]:
        """Reads shared beginnings once, then decodes in batches of `rows`."""
        keys = [tuple(prompt) for prompt in prompts]
        longest, home = _longest_prompts(keys)
        responses: dict[int, Response] = {}
        # Prompts of one conversation stay together, so that few histories are held at a time.
        order = sorted(range(len(keys)), key=lambda index: (home[index], len(keys[index])))
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            needed = sorted({home[index] for index in chosen})
            place = {row: i for i, row in enumerate(needed)}
            cache = SlotCache.empty(self._layers, len(needed), self.model.device)
            hidden = self._read(cache, [longest[row] for row in needed])
            rows = torch.tensor([place[home[index]] for index in chosen], device=hidden.device)
            lengths = torch.tensor([len(keys[index]) for index in chosen], device=hidden.device)
            batch = cache.take(rows, lengths)
            found, _ = self._decode(batch, hidden[rows, lengths - 1], sampling)
            responses.update(zip(chosen, found, strict=True))
        return [responses[index] for index in range(len(keys))]

    def _continue(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Response]:
        """Goes on from the rows of the last call; rows that no prompt goes on from are dropped."""
        keys = [tuple(prompt) for prompt in prompts]
        rows = _continued_rows(keys, self._texts)
        if self._cache is None or rows is None:
            cache = SlotCache.empty(self._layers, len(keys), self.model.device)
            known = [0] * len(keys)
        else:
            cache = self._cache
            known = [len(self._texts[row]) for row in rows]
            if rows != list(range(len(self._texts))):
                cache = cache.take(torch.tensor(rows, device=self.model.device))
        hidden = self._read(cache, [key[count:] for key, count in zip(keys, known, strict=True)])
        last = torch.tensor(
            [len(key) - count - 1 for key, count in zip(keys, known, strict=True)], device=hidden.device
        )
        found, cache = self._decode(cache, hidden[torch.arange(len(keys), device=hidden.device), last], sampling)
        self._cache = cache
        # The last sampled token was never read: the next call begins with it.
        self._texts = [key + response.token_ids[:-1] for key, response in zip(keys, found, strict=True)]
        return found

    @property
    def _layers(self) -> int:
        return int(self.model.causal_lm.config.num_hidden_layers)

    def _read(self, cache: SlotCache, texts: Sequence[Sequence[int]]) -> Tensor:
        """Appends texts to the rows and gives their hidden states, (rows, tokens, hidden)."""
        width = max(len(text) for text in texts)
        ids = torch.full((len(texts), width), self.stop_token_id, dtype=torch.long)
        real = torch.zeros(len(texts), width, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
            real[row, : len(text)] = True
        return self._forward(cache, ids.to(self.model.device), real.to(self.model.device))

    def _forward(self, cache: SlotCache, ids: Tensor, real: Tensor) -> Tensor:
        positions, mask = cache.extend(real)
        output = self.model.trunk(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self.model.attention_mask(mask),
            past_key_values=cache.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _decode(self, cache: SlotCache, hidden: Tensor, sampling: Sampling) -> tuple[list[Response], SlotCache]:
        """Samples until every row ended. ``hidden`` (rows, hidden) predicts each row's first token."""
        rows = hidden.shape[0]
        tokens: list[list[int]] = [[] for _ in range(rows)]
        logprobs: list[list[float]] = [[] for _ in range(rows)]
        whole, since = cache, cache.slots
        active = torch.arange(rows)  # which row of the whole each row of the running batch is
        running = torch.ones(rows, dtype=torch.bool)  # of the running batch: not ended yet
        for step in range(sampling.max_new_tokens):
            drawn, drawn_logprobs = sample_tokens(self.model.logits(hidden), sampling, self.generator)
            drawn_list, logprob_list = drawn.tolist(), drawn_logprobs.tolist()
            alive = running.tolist()
            for place, row in enumerate(active.tolist()):
                if alive[place]:
                    tokens[row].append(drawn_list[place])
                    logprobs[row].append(logprob_list[place])
            self._generated += sum(alive)
            if self.on_step is not None:
                self.on_step(sum(alive))
            running = running & (drawn.cpu() != self.stop_token_id)
            if not running.any() or step + 1 == sampling.max_new_tokens:
                break
            if int(running.sum()) <= len(running) // 2:
                kept = running.nonzero().squeeze(1)
                smaller = cache.take(kept.to(hidden.device))
                whole, since = self._merge(whole, cache, active, since, keep_parent=self.keep)
                cache, active, drawn = smaller, active[kept], drawn[kept.to(drawn.device)]
                running = running[kept]
            hidden = self._forward(cache, drawn[:, None], running[:, None].to(drawn.device))[:, 0]
        if self.keep:
            whole, _ = self._merge(whole, cache, active, since, keep_parent=True)
        return [
            Response(tuple(ids), tuple(values), ids[-1] == self.stop_token_id)
            for ids, values in zip(tokens, logprobs, strict=True)
        ], whole

    @staticmethod
    def _merge(
        whole: SlotCache, part: SlotCache, active: Tensor, since: int, *, keep_parent: bool
    ) -> tuple[SlotCache, int]:
        """Writes what a smaller batch added back into the whole, when the whole is wanted later."""
        if keep_parent and part is not whole:
            whole.put_back(part, active.to(whole.real.device), since)
        return whole, part.slots


def _longest_prompts(keys: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The prompts that no other prompt goes on from, and for each prompt which of those begins with it."""
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    longest: list[tuple[int, ...]] = []
    home = [0] * len(keys)
    # In sorted order everything that begins with a prompt comes right after it: walk backwards.
    for index in reversed(order):
        if not longest or longest[-1][: len(keys[index])] != keys[index]:
            longest.append(keys[index])
        home[index] = len(longest) - 1
    return longest, home


def _continued_rows(keys: Sequence[tuple[int, ...]], texts: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Which kept row each prompt goes on from; None unless every prompt goes on from one.

    Conversations that are equal so far go on from the same row, which is as good as their own.
    """
    known = {text: row for row, text in enumerate(texts)}
    lengths = sorted({len(text) for text in texts}, reverse=True)
    rows: list[int] = []
    for key in keys:
        row = next((known[key[:n]] for n in lengths if n < len(key) and key[:n] in known), None)
        if row is None:
            return None
        rows.append(row)
    return rows
