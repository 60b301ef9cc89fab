"""The local engine: samples from the weights in memory.

It computes no token's keys and values twice. Prompts that begin alike in one call (the states of one conversation, or
one state asked for several responses) are read once; with ``keep=True`` the rows of the last call stay, so that the
next turn of a conversation only reads what is new. A row whose response ended is given to the next prompt, and leaves
the batch when there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from lightning_iterppo.generation.cache import SlotCache
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.prompts import PromptQueue, continued_rows
from lightning_iterppo.generation.randomness import seeds_in_turn, uniforms
from lightning_iterppo.generation.sampling import Sampling, sample_tokens
from lightning_iterppo.models.attention import FEW_QUERIES, GROUPED, products_pay
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.modes import evaluating

# Tokens that are read sooner than a pass by itself is begun.
_FEW = 32


@contextmanager
def speaking(model: LanguageModel, variant: str = POLICY) -> Iterator[None]:
    """The model as it speaks: without dropout, a variant in use and its adapter folded in.

    An engine does it for every call; whoever makes many short calls does it once around all of them. The weights of the
    variant must not change within it.
    """
    with evaluating(model), model.using(variant), model.whole(), model.folded():
        yield


class LocalEngine:
    """Samples responses from a variant of a language model.

    Args:
        model: the model.
        stop_token_id: the token that ends a response.
        seed: the randomness of responses that are asked for without a seed of their own; the same seed and the same
            calls give the same ones.
        rows: how many responses are sampled side by side. More is faster and holds more memory.
        keep: keep the keys and values of the last call for prompts that go on from it. The weights must not change
            between two such calls.
        variant: which variant samples.
        grouped: attend without copies of keys and values that several heads share; False leaves it to transformers, for
            comparison.
        on_step: called with the number of tokens of each decoding step and of responses that ended with it, for a
            progress display.
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
        grouped: bool = True,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model
        self.stop_token_id = stop_token_id
        self.rows = rows
        self.keep = keep
        self.variant = variant
        self.grouped = grouped
        self.on_step = on_step
        self.seed = seed
        self._generated = 0
        self._answered = 0
        self._cache: SlotCache | None = None
        self._texts: list[tuple[int, ...]] = []  # the tokens that each kept row holds

    @property
    def generated_tokens(self) -> int:
        """How many tokens were sampled so far."""
        return self._generated

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int] | None = None
    ) -> list[Response]:
        """One response a prompt, in order.

        With a seed a response is the same whatever else is asked for beside it, in how many rows, and on which process,
        up to rounding: a row of other neighbours may differ in its last digits.

        Raises:
            ValueError: a prompt is empty, or there are not as many seeds as prompts.
        """
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("a prompt needs at least one token")
        if seeds is None:
            seeds = seeds_in_turn(self.seed, self._answered, len(prompts))
        if len(seeds) != len(prompts):
            raise ValueError(f"every prompt needs a seed: found {len(seeds)} seeds for {len(prompts)} prompts")
        self._answered += len(prompts)
        with speaking(self.model, self.variant), self.model.grouped() if self.grouped else nullcontext():
            keys = [tuple(prompt) for prompt in prompts]
            return self._continue(keys, sampling, seeds) if self.keep else self._fresh(keys, sampling, seeds)

    def _fresh(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seeds: Sequence[int]) -> list[Response]:
        """Decodes `rows` prompts side by side; a row that ended is the next prompt's."""

        def read(texts: Sequence[tuple[int, ...]]) -> tuple[SlotCache, Tensor]:
            cache = self._empty(len(texts))
            return cache, self._read(cache, texts)

        queue = PromptQueue(prompts, self.rows, read)
        first = queue.take(self.rows)
        if first is None:
            return []
        cache, hidden, owners = first.cache.take(first.rows, first.lengths), first.hidden, first.indexes
        del first  # and with it what was read, once it is given out
        responses, _ = self._decode(cache, hidden, owners, sampling, seeds, queue)
        return [responses[index] for index in range(len(prompts))]

    def _continue(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seeds: Sequence[int]) -> list[Response]:
        """Goes on from the rows of the last call; rows that no prompt goes on from are given to others or dropped."""
        if not prompts:
            return []
        rows = continued_rows(prompts, self._texts)
        cache, known = self._arranged(prompts, rows)
        hidden = self._read(cache, [prompt[count:] for prompt, count in zip(prompts, known, strict=True)])
        last = [len(prompt) - count - 1 for prompt, count in zip(prompts, known, strict=True)]
        everyone = list(range(len(prompts)))
        found, cache = self._decode(cache, hidden[everyone, last], everyone, sampling, seeds)
        self._cache = cache
        # The last sampled token was never read: the next call begins with it.
        self._texts = [prompt + found[row].token_ids[:-1] for row, prompt in enumerate(prompts)]
        return [found[row] for row in everyone]

    def _arranged(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int | None]) -> tuple[SlotCache, list[int]]:
        """A cache with one row a prompt, and how many tokens of each it holds.

        Prompts that begin anew are read up to the last few tokens, as many as the others have that are new.
        """
        known = [0 if row is None else len(self._texts[row]) for row in rows]
        if self._cache is None or all(row is None for row in rows):
            cache, shared = self._opened(prompts)
            return cache, [shared] * len(prompts)
        free = set(range(self._cache.rows)).difference(row for row in rows if row is not None)
        # A prompt that begins anew may have any row; its own, if that is free, so that nothing has to move.
        places = [(place if place in free else 0) if row is None else row for place, row in enumerate(rows)]
        moved = places != list(range(self._cache.rows))
        cache = self._cache.take(places) if moved else self._cache
        new = [place for place, row in enumerate(rows) if row is None]
        cache.clear(new)
        width = max(len(prompts[i]) - known[i] for i, row in enumerate(rows) if row is not None)
        long = [place for place in new if len(prompts[place]) > width]
        if long:
            beginnings = [prompts[place][:-width] for place in long]
            other, shared = self._opened(beginnings)
            self._read(other, [text[shared:] for text in beginnings])
            lengths = [len(text) for text in beginnings]
            cache.put(long, other, range(len(long)), lengths)
            for place, length in zip(long, lengths, strict=True):
                known[place] = length
        return cache, known

    def _opened(self, texts: Sequence[tuple[int, ...]]) -> tuple[SlotCache, int]:
        """A cache with a row for each text, and how many first tokens, alike in all, are read already: once, for all.

        At least one token of each is left.
        """
        # In sorted order the first and the last differ where any two do.
        low, high = min(texts)[:-1], max(texts)[:-1]
        shared = next(
            (at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
        )
        if shared * (len(texts) - 1) < _FEW:
            return self._empty(len(texts)), 0
        cache = self._empty(1)
        self._read(cache, [texts[0][:shared]])
        return cache.take([0] * len(texts)), shared

    def _empty(self, rows: int) -> SlotCache:
        config, device = self.model.causal_lm.config, self.model.device
        products = config._attn_implementation == GROUPED and products_pay(self.model.head_weight.dtype, device)
        whole = FEW_QUERIES if products else 0
        return SlotCache.empty(int(config.num_hidden_layers), rows, device, whole)

    def _read(self, cache: SlotCache, texts: Sequence[Sequence[int]]) -> Tensor:
        """Appends texts to the rows and gives their hidden states, (rows, tokens, hidden)."""
        counts = torch.tensor([len(text) for text in texts])
        ids = torch.full((len(texts), int(counts.max())), self.stop_token_id, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
        return self._forward(cache, ids.to(self.model.device), counts)

    def _forward(self, cache: SlotCache, ids: Tensor, counts: Tensor) -> Tensor:
        positions, mask = cache.extend(counts, ids.shape[1])
        output = self.model.trunk(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self.model.attention_mask(mask, positions),
            past_key_values=cache.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _decode(
        self,
        cache: SlotCache,
        hidden: Tensor,
        owners: list[int],
        sampling: Sampling,
        seeds: Sequence[int],
        queue: PromptQueue | None = None,
    ) -> tuple[dict[int, Response], SlotCache]:
        """Samples until every row ended.

        Args:
            cache: holds the prompts.
            hidden: (rows, hidden), predicts each row's first token.
            owners: whose response each row's is; without a queue the row's own number.
            sampling: how.
            seeds: of all prompts' responses, by their owners.
            queue: prompts for the rows that end.

        Returns:
            The responses by their owners; without a queue the cache of all rows with the responses.
        """
        tokens: dict[int, list[int]] = {owner: [] for owner in owners}
        logprobs: dict[int, list[float]] = {owner: [] for owner in owners}
        whole = cache
        running = [True] * len(owners)
        numbers = self._numbers(seeds, owners, sampling)
        steps = torch.zeros(len(owners), 1, dtype=torch.long, device=numbers.device)  # which number is a row's next
        while True:
            drawn, drawn_logprobs = sample_tokens(
                self.model.logits(hidden), sampling, numbers.gather(1, steps).squeeze(1)
            )
            # A row that ended is computed on, with a number that nobody looks at.
            steps = (steps + 1).clamp_(max=sampling.max_new_tokens - 1)
            drawn_list, logprob_list = drawn.tolist(), drawn_logprobs.tolist()
            alive = [row for row, runs in enumerate(running) if runs]
            for row in alive:
                own = tokens[owners[row]]
                own.append(drawn_list[row])
                logprobs[owners[row]].append(logprob_list[row])
                running[row] = own[-1] != self.stop_token_id and len(own) < sampling.max_new_tokens
            self._generated += len(alive)
            if self.on_step is not None:
                self.on_step(len(alive), sum(not running[row] for row in alive))
            ended = [row for row, runs in enumerate(running) if not runs]
            admitted = queue.take(len(ended)) if queue is not None and ended else None
            if admitted is None:
                if len(ended) == len(running):
                    break
                if len(ended) >= len(running) / 2:
                    kept = [row for row, runs in enumerate(running) if runs]
                    smaller = cache.take(kept)
                    self._put_back(whole, cache, owners, ended)
                    cache, owners, drawn = smaller, [owners[row] for row in kept], drawn[kept]
                    numbers, steps = numbers[kept], steps[kept]
                    running = [True] * len(kept)
            if any(running):
                hidden = self._forward(cache, drawn[:, None], torch.tensor(running).long())[:, 0]
            if admitted is not None:
                rows = ended[: len(admitted.indexes)]
                cache.put(rows, admitted.cache, admitted.rows, admitted.lengths)
                hidden[rows] = admitted.hidden
                numbers[rows] = self._numbers(seeds, admitted.indexes, sampling)
                steps[rows] = 0
                for row, owner in zip(rows, admitted.indexes, strict=True):
                    owners[row], running[row] = owner, True
                    tokens[owner], logprobs[owner] = [], []
                admitted = None
        self._put_back(whole, cache, owners, range(cache.rows))
        return {
            owner: Response(tuple(ids), tuple(logprobs[owner]), ids[-1] == self.stop_token_id)
            for owner, ids in tokens.items()
        }, whole

    def _numbers(self, seeds: Sequence[int], owners: Sequence[int], sampling: Sampling) -> Tensor:
        """The random numbers of some responses, (responses, most tokens)."""
        return uniforms([seeds[owner] for owner in owners], sampling.max_new_tokens).to(self.model.device)

    def _put_back(self, whole: SlotCache, part: SlotCache, owners: Sequence[int], rows: Sequence[int]) -> None:
        """Writes what rows of a smaller batch added back into the whole, when the whole is wanted later."""
        if self.keep and part is not whole:
            places = [owners[row] for row in rows]
            since = int(whole.lengths[places].min())
            whole.put(places, part, rows, part.lengths[list(rows)].tolist(), since)
