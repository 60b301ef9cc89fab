"""The customer behind a server that nobody here wrote: transformers' own, with the embedded language model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_iterppo.cli import main
from lightning_iterppo.customers.chat import ChatClient, ChatCustomer, SaidOutcome
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.models.smollm2 import smollm2_directory
from lightning_iterppo.testing import check_customer

pytestmark = pytest.mark.slow
for package in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has loaded the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(smollm2_directory())]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_real_model_plays_the_customer(server: str, tmp_path: Path) -> None:
    # With the cache: this server does not sample by a seed.
    kept = str(tmp_path)
    client = ChatClient(str(smollm2_directory()), base_url=server, max_tokens=24, cache=kept, timeout=300)
    said = SaidOutcome("(?i)thank")
    persona = {"name": ["Ann", "Ben"]}
    found = check_customer(
        lambda: ChatCustomer(client, "You are {name}, a customer. Be brief.", said, persona, max_turns=3),
        seeds=range(2),
        timeout=300,
    )
    assert all(turn.customer for c in found for turn in c.turns)


def test_a_run_collects_from_it_and_says_what_it_cost(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "talks.jsonl"
    status = main(
        [
            *("collect", "shop", "-o", str(output), "-n", "2", "logs=none", "customer=chat", "customer.max_turns=2"),
            *(f"customer.client.model={smollm2_directory()}", f"customer.client.base_url={server}"),
            *("customer.client.max_tokens=16", "customer.client.timeout=300", "loop.customer_timeout=300"),
            *("trainer.threads=1", "sampling.max_new_tokens=8"),
        ]
    )
    assert status == 0, capsys.readouterr().err
    talks = read_conversations(output)
    assert len(talks) == 2 and all(1 <= len(c.turns) <= 2 and c.turns[0].customer for c in talks)
    assert all(c.system is not None and c.system.startswith("You sell in a sports shop's chat.") for c in talks)
