"""What every test has: no network, one thread, and tiny models that are made in milliseconds."""

from __future__ import annotations

import os

# Before transformers is imported anywhere: it reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import importlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_iterppo.config import TrainerConfig
from lightning_iterppo.critic import QCritic
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.adaptation import Adaptation, Computing
from lightning_iterppo.models.backbones import Backbone
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.trainer import TrainerFactory
from lightning_iterppo.warm_start import WarmStart

torch.set_num_threads(1)  # the matrices are tiny: more threads only wait for each other

WORDS = (
    "hello hi yes no please thanks bye I you we want need have buy like the a is it this that for my your with "
    "red blue green small large cheap good shoes hat coat bag price what which how much one two three ? ! . ,"
).split()
#: The words of `named_in_recipes.WordCustomer`: few, so that an untrained model says the right one now and then.
COLOURS = ["red", "blue", "?", "yes", "no"]


@pytest.fixture
def tiny_chat_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer model of width 32 and its tokenizer, fresh for each test; its words are the ones above."""
    config = ScratchConfig(hidden_size=32, layers=2, heads=2, vocabulary=list(WORDS), max_length=128)
    model, tokenizer = make_scratch_model(config, seed=0)
    return model.eval(), tokenizer


@pytest.fixture(scope="session")
def make_language_model() -> Callable[..., LanguageModel]:
    """Makes a tiny `LanguageModel`: ``make("full")``, ``make("lora", top_layers=1)``."""

    def make(
        kind: Any = "full",
        *,
        layers: int = 2,
        hidden: int = 32,
        rank: int = 4,
        top_layers: int | None = None,
        dropout: float = 0.0,
        fold: bool = True,
        keep_features: bool = True,
        computing: Computing | None = None,
        dtype: torch.dtype = torch.float32,
        vocabulary: Sequence[str] = WORDS,
        seed: int = 0,
    ) -> LanguageModel:
        config = ScratchConfig(hidden_size=hidden, layers=layers, heads=2, vocabulary=list(vocabulary), max_length=128)
        model, tokenizer = make_scratch_model(config, seed)
        torch.manual_seed(seed)  # LoRA's matrices
        return LanguageModel(
            Backbone(model.to(dtype).eval(), tokenizer, "scratch", None),  # type: ignore[arg-type]
            Adaptation(kind, rank, 2 * rank, dropout, top_layers, fold, keep_features),
            computing,
        )

    return make


@pytest.fixture(scope="session")
def stir() -> Callable[..., None]:
    """Moves the weights of a variant by noise, as training would: ``stir(model, "policy")``."""

    def add_noise(model: LanguageModel, variant: str, *, scale: float = 0.1, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.variant_tensors(variant).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=scale)

    return add_noise


@pytest.fixture(scope="session")
def word_customer() -> Any:
    """The class `WordCustomer`, which recipes name as ``named_in_recipes.WordCustomer``."""
    return importlib.import_module("named_in_recipes").WordCustomer


@pytest.fixture(scope="session")
def make_loop(make_language_model: Callable[..., LanguageModel], word_customer: Any) -> Callable[..., IterativePPOLoop]:
    """Makes a whole loop that runs in a second; ``settings`` and ``policy`` change numbers, the rest is the loop's."""

    def make(
        kind: str = "full",
        *,
        settings: dict[str, Any] | None = None,
        policy: dict[str, Any] | None = None,
        layers: int = 1,
        top_layers: int | None = None,
        computing: Computing | None = None,
        dtype: torch.dtype = torch.float32,
        precision: str = "32-true",
        **more: Any,
    ) -> IterativePPOLoop:
        how = {"top_layers": top_layers, "computing": computing, "dtype": dtype}
        model = make_language_model(kind, layers=layers, hidden=16, vocabulary=COLOURS, **how)
        renderer = ChatRenderer(model.tokenizer)
        numbers: dict[str, Any] = {
            "iterations": 2,
            "conversations": 20,
            "evaluation_conversations": 10,
            "batch": 10,
            "sampling": Sampling(max_new_tokens=3),
            "critic_epochs": 2,
            "history": 1,
            "rounds": 2,
            "ppo_epochs": 1,
            "conversations_per_round": 16,
            **(settings or {}),
        }
        return IterativePPOLoop(
            language_model=model,
            policy=PPOPolicy(model, **{"learning_rate": 3e-3, **(policy or {})}),
            critic=QCritic(model, learning_rate=3e-3),
            renderer=renderer,
            settings=LoopSettings(**numbers),
            trainers=TrainerFactory(TrainerConfig(accelerator="cpu", precision=precision)),
            warm_start=WarmStart(model),
            **{"customer": word_customer, **more},
        )

    return make


@pytest.fixture(scope="session")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve`, which nobody here wrote: it loads the model that a request names."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
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
