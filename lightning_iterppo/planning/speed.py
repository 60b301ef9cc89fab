"""How fast the machine at hand is at the passes of a model, and what a process takes without one: both are measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final, cast

import lightning.pytorch as pl
import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.improvement import RoundDataModule, score_each
from lightning_iterppo.loading import adaptation_of, computing_of
from lightning_iterppo.machine import release_memory
from lightning_iterppo.memory import free_memory
from lightning_iterppo.models.backbones import Backbone, resolve_dtype
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.models.tree import collate_trees
from lightning_iterppo.optimization import adamw
from lightning_iterppo.planning.rehearsal import Rehearsed, Work, scored
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.trainer import TrainerFactory

#: Layers of the two thin models: what a pass costs is a line through the two.
_DEPTHS: Final = (2, 6)
#: Operations that one measured step of both may have, so that measuring takes seconds.
_BUDGET: Final = 2.5e11
_SPOKEN: Final = 8  # tokens
#: Of a nominal speed, what training reaches: an assumption where nothing is measured.
EFFICIENCY: Final = 0.4
#: Of accelerators, operations in 16 bits in the time in which a byte of memory is read: an assumption too.
FLOPS_A_BYTE: Final = 300.0


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second, in passes without gradients and in training steps, and seconds of a token.

    Args:
        reading: of the trunk alone, as the critic scores.
        preparing: with log-probabilities, as a round is prepared.
        fitting: of the critic's steps.
        training: of PPO's steps.
        speaking: seconds of one more token for every conversation of a batch.
        product: a second, in a product of matrices alone; None where nothing was measured.
    """

    reading: float
    preparing: float
    fitting: float
    training: float
    speaking: float
    product: float | None = None


def nominal_speed(
    found: Rehearsed, recipe: Recipe, *, flops: float, efficiency: float, bandwidth: float | None
) -> Speed:
    """The speed of a machine that is not here.

    Args:
        found: of the model.
        recipe: the recipe.
        flops: of a device, a second.
        efficiency: the share of it that is reached.
        bandwidth: bytes of a device's memory that are read in a second.
    """
    reached = flops * efficiency
    rate = bandwidth or flops / FLOPS_A_BYTE
    # A token for every row reads all weights once, or is bound by its products.
    speaking = max(found.weights / rate, recipe.loop.batch * found.weights / reached)
    return Speed(reached, reached, reached, reached, speaking)


def measured_speed(config: PreTrainedConfig, recipe: Recipe, work: Work, found: Rehearsed) -> Speed:
    """The speed of this machine: of two models like it of a few layers, in steps that are timed.

    Raises:
        ConfigError: the thin models do not fit into what memory is free.
    """
    device = TrainerFactory(recipe.trainer).device
    layers = int(config.num_hidden_layers)
    adapted = min(recipe.model.adaptation.top_layers or layers, layers)
    depths = [depth for depth in _DEPTHS if depth < layers] or [layers]
    size = max(1, found.weights // (4 if recipe.model.adaptation.kind == "full" else 2) // layers)
    need = 4 * (found.weights if depths == [layers] else found.weights * depths[-1] // layers) + 2**28
    if need > free_memory(device):
        raise ConfigError(
            f"the speed of this model cannot be measured here: even {depths[-1]} layers of it need "
            f"{need / 1e9:.0f} GB. Say what speed a device has, e.g. flops=400e12"
        )
    rows, short = _rows(work, size * sum(depths), recipe)
    timed = [_timed(config, recipe, short, depth, rows, device) for depth in depths]

    def line(number: int, length: int) -> float:
        first = timed[0][number]
        if len(timed) == 1:
            return first
        slope = (timed[1][number] - first) / (depths[1] - depths[0])
        return max(first, first + slope * (length - depths[0]))

    samples = recipe.policy.samples_per_state
    whole = len(work.tree(samples)) / len(short.tree(samples)) / rows
    batch, reading = recipe.policy.batch_conversations, max(8, recipe.policy.batch_conversations)
    frozen = found.again is not found.first
    depth = adapted if frozen else layers
    looked = line(0, depth) * whole * reading
    prepared = line(1, depth) * whole * reading
    fitted, trained = line(2, adapted) * whole * batch, line(3, adapted) * whole * batch
    # A step of the critic's has the operations of the trunk's passes, which are those of PPO's without the logits'.
    trunk = found.again.flops / reading * batch
    backward = (found.policy.forward + found.policy.backward) / (found.prepare.flops / reading * batch)
    return Speed(
        reading=found.again.flops / looked,
        preparing=found.prepare.flops / prepared,
        fitting=backward * trunk / fitted,
        training=(found.policy.forward + found.policy.backward) / trained,
        speaking=line(4, layers),
        product=_product(config, resolve_dtype(recipe.model.dtype), device),
    )


def _rows(work: Work, parameters: int, recipe: Recipe) -> tuple[int, Work]:
    """How many rows are measured, and of what conversations: shorter ones where one by itself takes long."""
    short = work
    while 6 * parameters * short.tokens > 8 * _BUDGET and short.tokens > 32:
        short = replace(short, tokens=short.tokens // 2, turns=1, response=min(short.response, short.tokens // 4))
    fits = int(_BUDGET // (6 * parameters * len(short.tree(recipe.policy.samples_per_state))))
    return min(max(1, fits), recipe.policy.batch_conversations), short


def _timed(
    config: PreTrainedConfig, recipe: Recipe, work: Work, depth: int, rows: int, device: torch.device
) -> tuple[float, float, float, float, float]:
    """Seconds of a trunk's pass, of one with log-probabilities, of a critic's and a policy's step, and of a token."""
    thin = copy.deepcopy(config)
    thin.num_hidden_layers = depth
    if getattr(thin, "layer_types", None):
        thin.layer_types = thin.layer_types[:depth]
    how = replace(adaptation_of(recipe.model), top_layers=None)
    dtype = torch.float32 if how.kind == "full" else resolve_dtype(recipe.model.dtype)
    made = AutoModelForCausalLM.from_config(thin, dtype=dtype)
    nobody = cast(PreTrainedTokenizerBase, SimpleNamespace(pad_token_id=0))
    model = LanguageModel(Backbone(made.eval(), nobody, "plan", None), how, computing_of(recipe.model)).to(device)
    model.precision = TrainerFactory(recipe.trainer).autocast
    policy = PPOPolicy(model).to(device)
    tree = work.tree(recipe.policy.samples_per_state, logged=recipe.policy.logged_reward != "none")
    batch = collate_trees([tree] * rows, 0).to(device)
    groups = [(model.trainable_parameters(), 1e-6), (policy.value_head.parameters(), 1e-6)]
    optimizer = adamw(groups, warmup_steps=1)["optimizer"]

    def look() -> None:
        with torch.no_grad():
            model.hidden(batch)

    def read() -> None:
        with torch.no_grad():
            scored(model, batch, policy)

    def fit() -> None:
        step(model.hidden(batch).float().mean())

    def train() -> None:
        step(scored(model, batch, policy))

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
        optimizer.step()

    engine = LocalEngine(model, stop_token_id=-1, seed=0, rows=recipe.loop.batch)
    prompts = [(0,) * work.tokens] * recipe.loop.batch

    def speak(count: int) -> Callable[[], Any]:
        return lambda: engine.generate(prompts, Sampling(max_new_tokens=count))

    train()  # the first makes what later ones find
    seconds = _seconds(look, device), _seconds(read, device), _seconds(fit, device), _seconds(train, device)
    speak(1)()
    speaking = (_seconds(speak(1 + _SPOKEN), device) - _seconds(speak(1), device)) / _SPOKEN
    return *seconds, max(speaking, 1e-9)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shorter of two times: what else runs on a machine only makes things slower."""
    found = []
    for _ in range(2):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _product(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product of the model's own: a layer's widest map over a thousand tokens."""
    width = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    left = torch.randn(1024, width, dtype=dtype, device=device)
    right = torch.randn(inner, width, dtype=dtype, device=device)
    left @ right.T
    return 2 * 1024 * width * inner / _seconds(lambda: left @ right.T, device)


def process_memory(source: str | None, dtype: str) -> int:
    """Bytes that a process of the library holds without a model of any size: an improvement of a tiny one, let go.

    Libraries are read when they are used first, so that a process that has just begun would say too little. Measured
    once in a process; later calls would count what the first plan left.

    Args:
        source: a directory whose tokenizer is loaded, which takes some ten megabytes too; None loads none.
        dtype: of the weights that do not train, as a recipe says it.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True) if source else None
    words = ScratchConfig(hidden_size=8, layers=1, heads=1, vocabulary=["a", "b"], max_length=64)
    model = LanguageModel.load("scratch", scratch=words, dtype=dtype)
    renderer = ChatRenderer(model.tokenizer)
    chat = Conversation("a", (Turn("a", "b"),), outcome=0.0)
    policy = PPOPolicy(model)
    rounds = RoundDataModule(
        policy, [chat], score_each(lambda history, response: 0.0), renderer=renderer, max_new_tokens=2
    )
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with torch.random.fork_rng(devices=[]):
        trainer.fit(policy, rounds)
    del trainer, rounds, policy, model
    release_memory()
    found = int(psutil.Process().memory_info().rss)
    del tokenizer  # which a run keeps
    return found
