"""The local engine: whatever it shares and keeps, responses are the model's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.local import LocalEngine, speaking
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models import folding
from lightning_iterppo.models.language_model import LanguageModel

Make = Callable[..., LanguageModel]
STOP = 1
# Some begin alike, one begins with another one whole, one occurs three times.
PROMPTS = [
    [3, 6, 7],
    [3, 6, 7, 8, 9, 10],
    [3, 20],
    [3, 6, 7],
    [3, 6, 7, 8, 30],
    [3, 6, 7],
    [4],
]


@pytest.fixture
def make_language_model(make_language_model: Make) -> Make:
    """In float64: what is compared differs by the order of sums alone, on every processor."""
    return lambda *arguments, **more: make_language_model(*arguments, **more).double()


def an_engine(model: LanguageModel, **more: Any) -> LocalEngine:
    return LocalEngine(model, **{"stop_token_id": STOP, "seed": 0, **more})


@torch.no_grad()
def check(model: LanguageModel, prompts: Sequence[Sequence[int]], responses: Sequence[Response]) -> None:
    """Every log-probability is that of a plain forward pass, and a response ends where it says."""
    assert len(prompts) == len(responses)
    for prompt, response in zip(prompts, responses, strict=True):
        ids = [*prompt, *response.token_ids]
        table = model.causal_lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(table[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]
        assert response.logprobs == pytest.approx(expected, abs=1e-5)
        assert response.finished == (response.token_ids[-1] == STOP)
        assert STOP not in response.token_ids[:-1]


def eager_to_end(model: LanguageModel) -> LanguageModel:
    """Makes the end token likely, so that rows end at all sorts of times."""
    with torch.no_grad():
        model.causal_lm.get_output_embeddings().weight[STOP] *= 6
    return model


@pytest.mark.parametrize("rows", [64, 3, 1])
def test_logprobs_are_those_of_a_plain_forward_pass(make_language_model: Make, rows: int) -> None:
    model = make_language_model()
    responses = an_engine(model, rows=rows).generate(PROMPTS, Sampling(max_new_tokens=5))
    check(model, PROMPTS, responses)
    assert len({response.token_ids for response in responses}) > 4  # nobody copies the neighbour's response


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [True, False])
def test_rows_that_end_early_change_nothing_for_the_others(
    make_language_model: Make, keep: bool, attention: str
) -> None:
    model = eager_to_end(make_language_model())
    model.causal_lm.set_attn_implementation(attention)
    prompts = PROMPTS * 3
    widths: list[int] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    responses = an_engine(model, keep=keep).generate(prompts, Sampling(max_new_tokens=24))
    decoding = widths[1:]
    lengths = sorted(len(response.token_ids) for response in responses)
    assert lengths[0] < 4 < lengths[-1]  # else this test tests nothing
    assert decoding[-1] <= len(prompts) // 2 < decoding[0] == len(prompts)  # rows that ended have left
    check(model, prompts, responses)


def test_shared_beginnings_are_read_once(make_language_model: Make) -> None:
    model = make_language_model()
    read: list[list[list[int]]] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: read.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    an_engine(model).generate(PROMPTS, Sampling(max_new_tokens=1))
    assert len(read) == 1
    rows = sorted([token for token in row if token != STOP] for row in read[0])
    # [3, 6, 7] is the beginning of others, so only four of the seven prompts are read.
    assert rows == [[3, 6, 7, 8, 9, 10], [3, 6, 7, 8, 30], [3, 20], [4]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_kept_turns_are_as_fresh_ones(make_language_model: Make, attention: str) -> None:
    """Several turns, some rows leaving on the way, rows ending at different times, one row's prompt changing order."""
    model = eager_to_end(make_language_model())
    model.causal_lm.set_attn_implementation(attention)
    keeping = an_engine(model, keep=True)
    prompts = [[3, 6], [3, 7, 8], [3, 6, 9], [4, 10], [3, 11], [5, 12, 13]]
    sampling = Sampling(max_new_tokens=6)
    for turn in range(4):
        responses = keeping.generate(prompts, sampling)
        check(model, prompts, responses)
        following = [
            [*prompt, *response.token_ids, *([] if response.finished else [STOP]), 3, 14 + turn, 4]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        prompts = following[::-1][: max(2, len(following) - turn)]


def test_at_temperature_zero_kept_and_fresh_say_the_same(make_language_model: Make) -> None:
    model = make_language_model()
    greedy = Sampling(temperature=0.0, max_new_tokens=4)
    keeping, prompts = an_engine(model, keep=True), [[3, 6, 7], [3, 8], [4, 9, 10, 11]]
    for _ in range(3):
        kept, fresh = keeping.generate(prompts, greedy), an_engine(model).generate(prompts, greedy)
        assert kept == fresh
        for prompt, response in zip(prompts, fresh, strict=True):
            with torch.no_grad():
                table = model.causal_lm(torch.tensor([[*prompt, *response.token_ids]])).logits[0]
            best = table.argmax(-1)[len(prompt) - 1 : -1]
            assert tuple(best.tolist()) == response.token_ids
            assert set(response.logprobs) == {0.0}
        prompts = [[*p, *r.token_ids, 3, 12, 4] for p, r in zip(prompts, kept, strict=True)]


def test_a_kept_turn_reads_only_what_is_new(make_language_model: Make) -> None:
    model = make_language_model()
    engine = an_engine(model, keep=True)
    prompts = [[3, 6, 7, 8, 9], [3, 10]]
    first = engine.generate(prompts, Sampling(max_new_tokens=2))
    read: list[int] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    engine.generate(
        [[*p, *r.token_ids, 3, 11] for p, r in zip(prompts, first, strict=True)], Sampling(max_new_tokens=1)
    )
    assert read == [3]  # the last sampled token, which was never read, and the two new ones


def test_new_conversations_join_those_that_are_kept(make_language_model: Make) -> None:
    """Nothing that is kept is read again, whether or not rows have to move."""
    model = eager_to_end(make_language_model())
    engine, sampling = an_engine(model, keep=True), Sampling(max_new_tokens=6)
    prompts = [[3, 6, 7, 8, 9, 10], [3, 10], [4, 6, 6, 6, 6, 6, 6, 6]]
    responses = engine.generate(prompts, sampling)
    read: list[Any] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    # In the place of one that ended; beside all; and in other places, with one conversation that is gone.
    for places in ([0, None, 2], [0, 1, 2, None, None], [None, 4, 0, 2], [None, None, 1]):
        following = [
            [3, 11, 12, 13, 14 + turn, 15, 16, 17]
            if place is None
            else [*prompts[place], *responses[place].token_ids, *([] if responses[place].finished else [STOP]), 3, 9]
            for turn, place in enumerate(places)
        ]
        read.clear()
        known = [0 if place is None else len(prompts[place]) + len(responses[place].token_ids) - 1 for place in places]
        prompts, responses = following, engine.generate(following, sampling)
        check(model, prompts, responses)
        new = max(len(prompt) - count for prompt, count in zip(prompts, known, strict=True) if count)
        # First the beginnings of the new ones by themselves, then as much of everybody as the others have that is new.
        assert [tuple(shape) for shape in read[:2]] == [(places.count(None), 8 - new), (len(places), new)]


def test_what_all_new_conversations_begin_with_is_read_once(make_language_model: Make) -> None:
    model = make_language_model()
    engine, system = an_engine(model, keep=True), [3, *range(10, 30)]
    read: list[tuple[int, ...]] = []
    hook = model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [[*system, 6 + row, 7] for row in range(4)]
    responses = engine.generate(prompts, Sampling(max_new_tokens=1))
    assert read == [(1, 21), (4, 2)]
    read.clear()
    later = [[*prompts[0], *responses[0].token_ids, 3], *[[*system, 16 + row, 7] for row in range(3)]]
    others = engine.generate(later, Sampling(max_new_tokens=1))
    assert read == [(1, 20), (3, 1), (4, 2)]  # the last tokens of the new ones come with what the kept one has new
    read.clear()
    engine.generate([[9, 8], [9, 8], [9, 8]], Sampling(max_new_tokens=1))
    assert read == [(3, 2)]  # nothing to gain
    hook.remove()
    check(model, prompts, responses)
    check(model, later, others)


def test_a_row_that_ended_is_the_next_prompts(make_language_model: Make) -> None:
    model = eager_to_end(make_language_model())
    prompts = [[3, 6, 7 + conversation, *range(8, 8 + state)] for conversation in range(12) for state in range(3)]
    widths, read = [], 0

    def count(module: Any, given: Any, kwargs: Any, out: Any) -> None:
        nonlocal read
        ids = kwargs["input_ids"]
        if ids.shape[1] > 1:
            read += int((ids != STOP).sum())
        else:
            widths.append(len(ids))

    hook = model.trunk.register_forward_hook(count, with_kwargs=True)
    engine = an_engine(model, rows=8)
    responses = engine.generate(prompts, Sampling(max_new_tokens=24))
    hook.remove()
    check(model, prompts, responses)
    assert read == 12 * 5  # the longest prompt of each conversation, once
    full = widths.count(8)  # until the prompts run out
    assert widths == [8] * full + sorted(widths[full:], reverse=True)
    assert engine.generated_tokens < 0.6 * 36 * 24  # rows end at all sorts of times,
    assert sum(widths) < engine.generated_tokens + 4 * 24  # and hardly a step of one is for nothing


def test_positions_stay_within_the_texts(make_language_model: Make) -> None:
    """Some models have a table of positions, and none for what only fills up."""
    model = make_language_model()
    highest: list[int] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: highest.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    engine = an_engine(model, keep=True)
    prompts = [[3] * 20, [3, 6]]
    longest = 0
    for _ in range(3):
        responses = engine.generate(prompts, Sampling(max_new_tokens=2))
        longest = max(longest, *(len(p) + len(r.token_ids) - 1 for p, r in zip(prompts, responses, strict=True)))
        assert max(highest) == longest - 1
        prompts = [[*p, *r.token_ids, *[7] * new] for p, r, new in zip(prompts, responses, [1, 30], strict=True)]


def test_equal_conversations_are_kept_too(make_language_model: Make) -> None:
    model = make_language_model()
    greedy = Sampling(temperature=0.0, max_new_tokens=2)
    engine = an_engine(model, keep=True)
    prompts = [[3, 6, 7], [3, 6, 7], [3, 8]]
    first = engine.generate(prompts, greedy)
    read: list[int] = []
    model.trunk.register_forward_hook(
        lambda module, given, kwargs, out: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    following = [[*p, *r.token_ids, 3, 11 + row] for row, (p, r) in enumerate(zip(prompts, first, strict=True))]
    responses = engine.generate(following, Sampling(max_new_tokens=3))
    assert read[0] == 3
    check(model, following, responses)


def test_prompts_of_other_conversations_begin_anew(make_language_model: Make) -> None:
    model = make_language_model()
    engine = an_engine(model, keep=True)
    engine.generate([[3, 6, 7]], Sampling(max_new_tokens=2))
    other = [[3, 20, 21], [3, 6]]
    check(model, other, engine.generate(other, Sampling(max_new_tokens=3)))


@pytest.mark.parametrize("keep", [True, False])
def test_a_seed_decides(make_language_model: Make, keep: bool) -> None:
    model = make_language_model()

    def twice(seed: int) -> list[list[Response]]:
        engine = an_engine(model, seed=seed, keep=keep)
        return [engine.generate(PROMPTS, Sampling(max_new_tokens=4)) for _ in range(2)]

    first, again, other = twice(3), twice(3), twice(4)
    assert first == again
    assert first != other
    assert first[0] != first[1]
    torch.manual_seed(99)
    assert twice(3) == first  # the global random state has no part in it


@pytest.mark.parametrize("keep", [True, False])
def test_a_response_is_of_its_own_seed_whoever_else_is_asked(make_language_model: Make, keep: bool) -> None:
    """Alone, in a batch, in another order, and in rows that others had before."""
    model = eager_to_end(make_language_model())
    sampling, seeds = Sampling(max_new_tokens=12), list(range(100, 100 + len(PROMPTS)))

    def said(prompts: Sequence[Sequence[int]], seeds: Sequence[int], **more: Any) -> list[Response]:
        return an_engine(model, keep=keep, **more).generate(prompts, sampling, seeds=seeds)

    together = said(PROMPTS, seeds)
    tokens = [response.token_ids for response in together]
    assert len({len(each) for each in tokens}) > 2  # else rows are never given to others
    for prompt, seed, expected in zip(PROMPTS, seeds, together, strict=True):
        (alone,) = said([prompt], [seed], seed=77)
        assert alone.token_ids == expected.token_ids
        assert alone.logprobs == pytest.approx(expected.logprobs, abs=1e-9)
    assert [response.token_ids for response in said(PROMPTS[::-1], seeds[::-1], rows=2)] == tokens[::-1]
    others = said([[5, 9], *PROMPTS, [3, 6, 7]], [1, *seeds, 2])
    assert [response.token_ids for response in others[1:-1]] == tokens
    # One prompt, and seeds that differ by one.
    assert len({response.token_ids for response in said([PROMPTS[0]] * 50, range(50))}) > 40


def test_a_later_turn_is_of_its_own_seed_too(make_language_model: Make) -> None:
    model = eager_to_end(make_language_model())
    sampling = Sampling(max_new_tokens=6)
    both, alone = (an_engine(model, keep=True) for _ in range(2))
    first = both.generate([[3, 6, 7], [3, 20]], sampling, seeds=[1, 2])
    assert alone.generate([[3, 20]], sampling, seeds=[2])[0].token_ids == first[1].token_ids
    following = [[*prompt, *said.token_ids, 3, 9] for prompt, said in zip([[3, 6, 7], [3, 20]], first, strict=True)]
    second = both.generate(following, sampling, seeds=[3, 4])
    assert alone.generate(following[1:], sampling, seeds=[4])[0].token_ids == second[1].token_ids


def test_a_seed_too_few(make_language_model: Make) -> None:
    with pytest.raises(ValueError, match="every prompt needs a seed: found 1 seeds for 2 prompts"):
        an_engine(make_language_model()).generate([[3], [4]], Sampling(), seeds=[1])


def test_what_is_sampled_is_the_models_distribution(make_language_model: Make) -> None:
    model = make_language_model(vocabulary=["a", "b"], hidden=16, layers=1)
    with torch.no_grad():
        model.causal_lm.get_output_embeddings().weight.mul_(1.5)  # far from uniform
    draws = 4000
    responses = an_engine(model, rows=1000).generate([[3, 6]] * draws, Sampling(max_new_tokens=2))
    counts = Counter(response.token_ids for response in responses)
    with torch.no_grad():
        first = model.causal_lm(torch.tensor([[3, 6]])).logits[0, -1].softmax(-1)
        second = model.causal_lm(torch.tensor([[3, 6, token] for token in range(8)])).logits[:, -1].softmax(-1)
    exact = {(STOP,): float(first[STOP])}
    for one in range(8):
        if one != STOP:
            exact.update({(one, two): float(first[one] * second[one, two]) for two in range(8)})
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-5)
    assert max(exact.values()) > 5 * sorted(exact.values())[len(exact) // 2]  # not all alike
    likely = {pair: p for pair, p in exact.items() if p * draws >= 5}
    rest = 1.0 - sum(likely.values())
    statistic = sum((counts[pair] - p * draws) ** 2 / (p * draws) for pair, p in likely.items())
    if rest * draws >= 5:
        statistic += (sum(counts[pair] for pair in exact if pair not in likely) - rest * draws) ** 2 / (rest * draws)
    freedom = len(likely)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_top_p_leaves_out_unlikely_tokens(make_language_model: Make) -> None:
    model = make_language_model()
    responses = an_engine(model).generate([[3, 6, 7]] * 200, Sampling(top_p=0.3, max_new_tokens=1))
    with torch.no_grad():
        exact = model.causal_lm(torch.tensor([[3, 6, 7]])).logits[0, -1].softmax(-1)
    ordered = exact.sort(descending=True)
    count = int((ordered.values.cumsum(0) < 0.3).sum()) + 1
    nucleus, mass = set(ordered.indices[:count].tolist()), float(ordered.values[:count].sum())
    assert {response.token_ids[0] for response in responses} <= nucleus
    for response in responses[:20]:
        expected = float((exact[response.token_ids[0]] / mass).log())
        assert response.logprobs[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_another_variant_may_speak(make_language_model: Make, stir: Callable[..., None], kind: str) -> None:
    model = make_language_model(kind)
    model.copy("policy", "anchor")
    stir(model, "anchor", scale=0.5)
    responses = an_engine(model, variant="anchor").generate(PROMPTS, Sampling(max_new_tokens=3))
    assert model.active == "policy"
    with model.using("anchor"):
        check(model, PROMPTS, responses)


def test_tokens_are_counted_and_announced(make_language_model: Make) -> None:
    model = eager_to_end(make_language_model())
    steps: list[tuple[int, int]] = []
    engine = an_engine(model, on_step=lambda tokens, ended: steps.append((tokens, ended)))
    responses = engine.generate(PROMPTS, Sampling(max_new_tokens=6))
    total = sum(len(response.token_ids) for response in responses)
    assert engine.generated_tokens == total == sum(tokens for tokens, _ in steps)
    assert sum(ended for _, ended in steps) == len(PROMPTS)
    engine.generate(PROMPTS[:2], Sampling(max_new_tokens=1))
    assert engine.generated_tokens == total + 2


def test_the_mode_of_the_model_is_as_before(make_language_model: Make) -> None:
    model = make_language_model()
    for training in (True, False):
        model.train(training)
        an_engine(model).generate([[3]], Sampling(max_new_tokens=1))
        assert model.training is training


def test_around_many_calls_the_adapter_is_folded_once(make_language_model: Make, monkeypatch: Any) -> None:
    model = make_language_model("lora", dropout=0.1)
    model.train()
    folded: list[str] = []
    fold = folding._fold
    monkeypatch.setattr(folding, "_fold", lambda layer, name: folded.append(name) or fold(layer, name))
    engine, sampling = an_engine(model, keep=True), Sampling(max_new_tokens=2)
    with speaking(model):
        once = len(folded)
        responses = [engine.generate(PROMPTS, sampling) for _ in range(2)]
        assert len(folded) == once > 0
        check(model, PROMPTS, responses[1])
    assert model.training
    again = an_engine(model, keep=True)
    assert [again.generate(PROMPTS, sampling) for _ in range(2)] == responses
    assert len(folded) == 3 * once


def test_an_empty_prompt(make_language_model: Make) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        an_engine(make_language_model()).generate([[3], []], Sampling())
