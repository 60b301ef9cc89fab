"""The weights that are trained play the customer too, as they were: without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_iterppo.build import build_loop
from lightning_iterppo.cli import main
from lightning_iterppo.composition import compose
from lightning_iterppo.customers.chat import Answer, ChatCustomer, LocalClient, ModelHost, SaidOutcome, Usage
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.generation import local
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.testing import check_customer

Make = Callable[..., LanguageModel]
TOLD = [{"role": "system", "content": "red shoes"}, {"role": "user", "content": "hello"}]
KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "full"])


def host(model: LanguageModel) -> ModelHost:
    return ModelHost(model, ChatRenderer(model.tokenizer))


def ask(client: LocalClient, *seeds: int) -> list[Answer]:
    """What it says to all of the seeds, asked at once."""

    async def together() -> list[Answer]:
        return list(await asyncio.gather(*(client.ask(TOLD, Usage(), seed=seed) for seed in seeds)))

    return asyncio.run(together())


@KINDS
def test_what_the_policy_learns_changes_nothing_of_the_customer(
    kind: str, make_language_model: Make, stir: Callable[..., None]
) -> None:
    model = make_language_model(kind)
    client = LocalClient(max_tokens=6)
    place = host(model)
    client.bind(place)
    before = ask(client, *range(8))
    stir(model, POLICY, scale=0.5)
    model.activate("critic")
    assert ask(client, *range(8)) == before
    assert model.active == "critic"  # it gives back what was in use
    assert len({answer.text for answer in before}) > 1


@KINDS
def test_another_adapter_plays_where_it_is_named(
    kind: str, make_language_model: Make, stir: Callable[..., None], tmp_path: Path
) -> None:
    other = make_language_model(kind)
    stir(other, POLICY, scale=0.5)
    other.save_variant(POLICY, tmp_path)
    model = make_language_model(kind)
    place = host(model)
    name = place.variant(str(tmp_path))
    assert place.variant(str(tmp_path)) == name != place.variant(None)
    for key, tensor in other.variant_tensors(POLICY).items():
        torch.testing.assert_close(model.variant_tensors(name)[key], tensor)
    clients = LocalClient(max_tokens=6), LocalClient(adapter=str(tmp_path), max_tokens=6)
    for client in clients:
        client.bind(place)
    plain, adapted = (ask(client, *range(8)) for client in clients)
    assert plain != adapted


def test_all_that_ask_at_once_are_one_batch(make_language_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    generate = local.LocalEngine.generate

    def counted(self: Any, prompts: Any, sampling: Any, **more: Any) -> Any:
        batches.append(len(prompts))
        return generate(self, prompts, sampling, **more)

    monkeypatch.setattr(local.LocalEngine, "generate", counted)
    client, place = LocalClient(max_tokens=4), host(make_language_model("lora"))
    client.bind(place)
    found = ask(client, 1, 2, 3)
    assert batches == [3]
    assert ask(client, 1, 2, 3) == found  # by their seeds
    assert ask(client, 2) == found[1:2]  # and not by who else asks


def test_the_model_is_told_what_a_server_is_told(make_language_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_language_model("lora")
    renderer, seen = ChatRenderer(model.tokenizer), []

    async def say(self: Any, variant: str, prompt: list[int], *_: Any) -> Any:
        seen.append(prompt)
        raise OSError("enough")

    monkeypatch.setattr(ModelHost, "say", say)
    client, place = LocalClient(), host(model)
    client.bind(place)
    with pytest.raises(OSError, match="enough"):
        ask(client, 1)
    expected = renderer.tokenizer.apply_chat_template(TOLD, add_generation_prompt=True, tokenize=False)
    assert seen == [renderer.encode(str(expected))]


def test_what_fails_is_that_customers_and_says_so(make_language_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = host(make_language_model("lora"))

    def customer() -> ChatCustomer:
        return ChatCustomer(LocalClient(max_tokens=4), "red", SaidOutcome("yes"), max_turns=2, host=place)

    check_customer(customer, seeds=range(2))

    def broken(*_: Any, **more: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(local.LocalEngine, "generate", broken)
    with pytest.raises((CustomerError, AssertionError), match="no memory"):
        check_customer(customer, seeds=[1])


def test_what_it_cannot_do_is_one_line(make_language_model: Make, stir: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a LocalClient asks the model of a run, and there is none here"):
        ask(LocalClient(), 1)
    client, place = LocalClient(), host(make_language_model("lora"))
    client.bind(place)
    with pytest.raises(ConfigError, match="calls no tools"):
        asyncio.run(client.ask(TOLD, Usage(), seed=1, tools=[{}]))
    with pytest.raises(ValueError, match="temperature"):
        LocalClient(temperature=-1)
    make_language_model("lora", rank=2).save_variant(POLICY, tmp_path)
    with pytest.raises(ConfigError, match=r"customer.client.adapter: the weights in .* are of another model"):
        host(make_language_model("lora")).variant(str(tmp_path))


SPEC = (
    *("customer=chat-local", "logs=none", "customer.client.max_tokens=4", "customer.system='hello {name}'"),
    *("customer.persona={name: [red, blue]}", "customer.agent=null", "customer.outcome.won=e", "customer.max_turns=2"),
    *("customer.outcome.lost=null", "loop.conversations=8", "loop.evaluation_conversations=4", "loop.batch=8"),
    *(
        "loop.failed_share=0.5",
        "seed=2",
        "loop.iterations=1",
        "policy.rounds=1",
        "critic.epochs=1",
        "model.scratch.hidden_size=16",
        "trainer.threads=1",
    ),
)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_a_run_trains_against_its_own_beginning(adaptation: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "probe", "-o", str(run), f"model/adaptation={adaptation}", *SPEC]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["usage"]["iteration-000"]["completion_tokens"] > 0
    made = read_conversations(run / "conversations" / "iteration-000.jsonl")
    assert all(turn.customer for c in made for turn in c.turns)


def test_the_same_weights_cannot_play_while_they_train() -> None:
    served = ["model/adaptation=lora", "engine=vllm", "loop.overlap=true", *SPEC]
    with pytest.raises(ConfigError, match=r"loop.overlap trains while customers talk"):
        build_loop(compose("probe", served), kept=False)
