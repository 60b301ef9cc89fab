"""The words behind `iterppo doctor --plan`: a recipe with its overrides, and what only a plan has to know."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from lightning_iterppo.composition import available_groups, compose
from lightning_iterppo.config import Recipe
from lightning_iterppo.errors import ConfigError, ModelNotFoundError
from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model
from lightning_iterppo.models.smollm2 import smollm2_directory
from lightning_iterppo.planning.memory_plan import Devices, Strategy
from lightning_iterppo.planning.rehearsal import Work

_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([MB])", re.IGNORECASE)
#: Strategies that divide something among processes.
SHARDED: Final = ("fsdp", "deepspeed")


@dataclass(frozen=True)
class Request:
    """What is planned.

    Args:
        recipe: the composed recipe.
        model: the model's name, or its shape in words.
        config: what it is made of.
        source: the directory of its files; None for a shape, and for one that is made from nothing.
        devices: who shares the work.
        accelerator: whether the devices are accelerators.
        work: what conversations are like.
        memory: bytes of a device; None asks this machine.
        flops: operations a second of a device; None measures this machine.
        efficiency: the share of ``flops`` that is reached; None takes the assumption.
        bandwidth: bytes a second of a device's memory; None takes the assumption.
    """

    recipe: Recipe
    model: str
    config: PreTrainedConfig
    source: str | None
    devices: Devices
    accelerator: bool
    work: Work
    memory: int | None = None
    flops: float | None = None
    efficiency: float | None = None
    bandwidth: float | None = None


def read_request(recipe: str, words: Sequence[str]) -> Request:
    """A request from words.

    Args:
        recipe: the recipe's name or file.
        words: ``key=value``: a recipe's overrides, and the plan's own keys.

    Raises:
        ConfigError: a key is unknown or a value is none.
        ModelNotFoundError: there is no such model on this machine.
    """
    own: dict[str, str] = {}
    others: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key in _OWN:
            own[key] = value
        else:
            others.append(word)
    read = {key: _OWN[key](key, value) for key, value in own.items()}
    count = read.get("devices")
    if (count or 1) > 1 and not any(word.startswith("trainer=") for word in others):
        others.append("trainer=ddp")
    shape = _model_word(others)
    composed = compose(recipe, others)
    if count is None:
        count = _count(composed)
    strategy: Strategy = "ddp" if count > 1 else "one"
    if composed.trainer.strategy in SHARDED:
        strategy = composed.trainer.strategy
    kind = composed.trainer.accelerator
    accelerator = torch.accelerator.is_available() if kind == "auto" else kind != "cpu"
    if accelerator and not torch.accelerator.is_available() and composed.model.dtype == "auto":
        composed.model.dtype = "bfloat16"  # which every accelerator of today computes in
    made_up = shape is not None or composed.model.scratch is not None
    source = None if made_up else _source(composed.model.id)
    config = typical_shape(shape) if shape else _config_of(composed, source)
    model = shape or composed.model.id
    work = Work()
    work = Work(
        tokens=read.get("tokens", min(composed.model.window or work.tokens, work.tokens)),
        turns=read.get("turns", work.turns),
        response=read.get("response", composed.sampling.max_new_tokens),
    )
    if work.tokens < 2 * work.turns:
        raise ConfigError(f"tokens is {work.tokens}, but {work.turns} turns need at least {2 * work.turns}")
    rest = {key: read.get(key) for key in ("memory", "flops", "efficiency", "bandwidth")}
    return Request(composed, model, config, source, Devices(count, strategy), accelerator, work, **rest)


def _model_word(words: list[str]) -> str | None:
    """Replaces ``model=DIR`` and ``model=7B``, which are no options of the group; gives the latter."""
    options = available_groups()["model"]
    shape = None
    for place, word in enumerate(words):
        key, _, value = word.partition("=")
        if key != "model" or value in options:
            continue
        if _SIZE.fullmatch(value):
            shape = value.upper()
            words[place] = "model=smollm2"
        elif Path(value).expanduser().is_dir():
            words[place] = "model=hub"
            words.append(f"model.id='{Path(value).expanduser()}'")
        else:
            raise ConfigError(
                f"model is {value!r}, but it must be {', '.join(options)}, a directory with a config.json, or a size "
                "like 7B; for one of the Hub: model=hub model.id=NAME"
            )
    return shape


def typical_shape(size: str) -> PreTrainedConfig:
    """A Llama of about so many weights: as wide as 128 times its layers, keys and values shared by four heads.

    Args:
        size: e.g. ``7B`` or ``350M``.
    """
    number, unit = _SIZE.fullmatch(size).groups()  # type: ignore[union-attr]
    target = float(number) * (10**9 if unit.upper() == "B" else 10**6)

    def shape(layers: int) -> LlamaConfig:
        width = 128 * layers
        heads = width // (128 if width >= 2048 else 64)
        return LlamaConfig(
            vocab_size=128_256 if target >= 10**9 else 49_152,
            hidden_size=width,
            intermediate_size=-(-7 * width // 2 // 256) * 256,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4) if heads % 4 == 0 else heads,
            tie_word_embeddings=target < 2 * 10**9,
        )

    return min((shape(layers) for layers in range(2, 161)), key=lambda each: abs(_weights(each) - target))


def _weights(config: LlamaConfig) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    layer = width * (2 * width + 2 * width * groups // heads + 3 * inner + 2)
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * width
    return int(config.num_hidden_layers * layer + embeddings + width)


def _source(name: str) -> str:
    return str(smollm2_directory()) if name == "smollm2" else str(Path(name).expanduser())


def _config_of(recipe: Recipe, source: str | None) -> PreTrainedConfig:
    if source is None:
        assert recipe.model.scratch is not None
        return make_scratch_model(ScratchConfig(**asdict(recipe.model.scratch)), recipe.seed)[0].config
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"model.id={recipe.model.id}: no configuration of it is on this machine, and a plan downloads nothing: "
            "give a directory with a config.json, or a size, e.g. model=7B"
        ) from error
    return config


def _count(recipe: Recipe) -> int:
    devices, nodes = recipe.trainer.devices, recipe.trainer.num_nodes
    if isinstance(devices, list):
        return len(devices) * nodes
    if str(devices).isdigit():
        return int(devices) * nodes
    here = torch.accelerator.device_count() if torch.accelerator.is_available() else 1
    return max(1, here) * nodes


def _whole(key: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{key} is {value!r}, but it must be a whole number of at least 1")
    return int(value)


def _number(key: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ConfigError(f"{key} is {value!r}, but it must be a number above 0, e.g. {key}={_EXAMPLES[key]}")
    return found


def _share(key: str, value: str) -> float:
    found = _number(key, value)
    if found > 1:
        raise ConfigError(f"{key} is {value!r}, but it must be above 0 and at most 1")
    return found


def _size(key: str, value: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]?I?B?)", value.upper().replace("E", "e"))
    unit = match.group(2) if match else "?"
    unit = unit if unit in _UNITS else f"{unit}B"
    if match is None or unit not in _UNITS or float(match.group(1)) == 0:
        raise ConfigError(f"{key} is {value!r}, but it must be a size, e.g. {key}=80GB or {key}=24GiB")
    return int(float(match.group(1)) * _UNITS[unit])


_EXAMPLES: Final = {"flops": "400e12", "efficiency": "0.4", "bandwidth": "3e12"}
#: The keys that only a plan has, and how each is read.
_OWN: Final[dict[str, Callable[[str, str], Any]]] = {
    "devices": _whole,
    "memory": _size,
    "flops": _number,
    "efficiency": _share,
    "bandwidth": _number,
    "tokens": _whole,
    "turns": _whole,
    "response": _whole,
}
