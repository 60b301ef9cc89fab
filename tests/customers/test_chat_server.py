"""The customer behind a server that nobody here wrote: transformers' own, with the embedded language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_iterppo.cli import main
from lightning_iterppo.customers.chat import ChatClient, ChatCustomer, SaidOutcome
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.models.smollm2 import smollm2_directory
from lightning_iterppo.testing import check_customer

pytestmark = pytest.mark.slow


def test_a_real_model_plays_the_customer(transformers_server: str, tmp_path: Path) -> None:
    # With the cache: this server does not sample by a seed.
    kept = str(tmp_path)
    client = ChatClient(str(smollm2_directory()), base_url=transformers_server, max_tokens=24, cache=kept, timeout=300)
    said = SaidOutcome("(?i)thank")
    persona = {"name": ["Ann", "Ben"]}
    found = check_customer(
        lambda: ChatCustomer(client, "You are {name}, a customer. Be brief.", said, persona, max_turns=3),
        seeds=range(2),
        timeout=300,
    )
    assert all(turn.customer for c in found for turn in c.turns)


def test_a_run_collects_from_it_and_says_what_it_cost(
    transformers_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "talks.jsonl"
    status = main(
        [
            *("collect", "shop", "-o", str(output), "-n", "2", "logs=none", "customer=chat", "customer.max_turns=2"),
            *(f"customer.client.model={smollm2_directory()}", f"customer.client.base_url={transformers_server}"),
            *("customer.client.max_tokens=16", "customer.client.timeout=300", "loop.customer_timeout=300"),
            *("trainer.threads=1", "sampling.max_new_tokens=8"),
        ]
    )
    assert status == 0, capsys.readouterr().err
    talks = read_conversations(output)
    assert len(talks) == 2 and all(1 <= len(c.turns) <= 2 and c.turns[0].customer for c in talks)
    assert all(c.system is not None and c.system.startswith("You sell in a sports shop's chat.") for c in talks)
