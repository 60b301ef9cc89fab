"""The language model of a recipe, and the policy of another run that it may start from.

A start in the same adaptation takes the other run's adapter as it is. In any other one the adapter is merged into the
weights it was trained beside, and the recipe's adaptation begins on what comes out: the same policy, to rounding.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from lightning_iterppo.composition import load_recipe
from lightning_iterppo.config import ModelConfig, Recipe
from lightning_iterppo.errors import ConfigError, RunDirectoryError
from lightning_iterppo.models.adaptation import Adaptation, Computing
from lightning_iterppo.models.backbones import NF4, Backbone, load_backbone, resolve_dtype
from lightning_iterppo.models.language_model import POLICY, VARIANTS, LanguageModel
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.models.variant_files import ADAPTER, MODEL_CONFIG, adapter_started_from, fingerprint
from lightning_iterppo.run_directory import RECIPE, RunDirectory


def load_language_model(config: Recipe) -> LanguageModel:
    """The backbone of a recipe with its adaptation, all of its variants the policy that it starts from.

    Raises:
        ModelNotFoundError: the model is not on this machine and cannot be downloaded.
        ConfigError: the adaptation does not fit the model, or ``model.start`` is of another model.
        RunDirectoryError: ``model.start`` is no policy of a run.
    """
    section = config.model
    if section.start is None:
        return _adapted(_backbone(config, section.dtype), section)
    start = _start_directory(section.start)
    origin = run_recipe(start, "model.start")
    if _name(origin.model) != _name(section):
        raise ConfigError(
            f"model.start is {section.start}, a run of model.id {origin.model.id}, but the recipe's model is "
            f"{section.id if section.id != origin.model.id else 'another one of that id'}: take the model of that run"
        )
    if _goes_on(start, origin, config):
        model = _adapted(_backbone(config, section.dtype), section)
        model.load_variant(POLICY, start)
        for variant in VARIANTS[1:]:
            model.copy(POLICY, variant)
        return model
    if section.dtype == NF4:
        raise ConfigError(
            "model.start is a policy of another adaptation, and model.dtype nf4 makes weights small while they are "
            "loaded: iterppo export it, and take its directory as model.id"
        )
    # An adapter that bfloat16 weights take up is rounded away for the most part.
    exact = section.adaptation.kind == "full" or section.dtype == "auto"
    backbone = whole_policy(start)
    backbone.model.to(torch.float32 if exact else resolve_dtype(section.dtype))  # type: ignore[arg-type]
    if section.adaptation.kind == "full":
        backbone = replace(backbone, started_from=None)  # what is kept of it is whole, and beside nothing
    return _adapted(backbone, section)


def whole_policy(directory: Path) -> Backbone:
    """The policy in a run's directory as a plain model in float32, an adapter merged into its weights.

    Raises:
        RunDirectoryError: it is an adapter and lies in no run, whose recipe would say of which model.
        ModelNotFoundError: that model is not on this machine.
    """
    if not (directory / ADAPTER).is_file():
        whole = load_backbone(str(directory), dtype="float32")
        return replace(whole, started_from=fingerprint(directory))
    config = run_recipe(directory, "policy")
    # Merged in float32: adding an adapter to bfloat16 weights would round most of it away.
    config.model.dtype = "float32"
    if adapter_started_from(directory) is None:
        config.model.start = None  # it is beside the model's own weights, whatever it began as
    model = load_language_model(config)
    model.load_variant(POLICY, directory)
    merged = model.merged(POLICY)
    return Backbone(merged.eval(), model.tokenizer, config.model.id, directory, fingerprint(directory))


def policy_directory(path: Path) -> Path:
    """A policy's own directory, from it, from a checkpoint, or from a run (its newest checkpoint).

    Raises:
        RunDirectoryError: the run has no checkpoint yet.
    """
    if (path / "policy").is_dir():
        return path / "policy"
    if (path / RECIPE).is_file():
        newest = RunDirectory.open(path).newest_checkpoint()
        if newest is None:
            raise RunDirectoryError(f"{path} has no checkpoint yet")
        return newest / "policy"
    return path


def pin_start(config: Recipe) -> None:
    """Makes ``model.start`` the directory of one policy: the newest one of a run may be another tomorrow.

    Raises:
        RunDirectoryError: it is no policy.
    """
    if config.model.start is not None:
        config.model.start = str(_start_directory(config.model.start).resolve())


def run_recipe(directory: Path, option: str) -> Recipe:
    """The recipe of the run that a policy or a critic lies in.

    Raises:
        RunDirectoryError: it lies in none.
    """
    run = next((each for each in directory.resolve().parents if (each / RECIPE).is_file()), None)
    if run is None:
        raise RunDirectoryError(
            f"{option} {directory}: it lies in no run, whose recipe says of which model it is; give a run, or a whole "
            "model as model.id"
        )
    return load_recipe(run / RECIPE)


def _start_directory(start: str) -> Path:
    path = Path(start).expanduser()
    found = policy_directory(path)
    if not any((found / name).is_file() for name in (ADAPTER, MODEL_CONFIG)):
        raise RunDirectoryError(
            f"model.start is {start}, which holds no policy; give a run, or the directory of one of its policies"
        )
    return found


def _goes_on(start: Path, origin: Recipe, config: Recipe) -> bool:
    """Whether the adapter in a directory is one of the recipe's: beside the same weights, in the same shape."""
    own = config.model.adaptation
    if own.kind == "full" or not (start / ADAPTER).is_file() or adapter_started_from(start) is not None:
        return False
    if config.model.id == "scratch" and origin.seed != config.seed:
        return False  # its weights come from the seed
    theirs = origin.model.adaptation
    return all(getattr(own, name) == getattr(theirs, name) for name in ("kind", "rank", "alpha", "top_layers"))


def _name(section: ModelConfig) -> tuple[object, ...]:
    """What tells one model from another: its id, or where it lies, and what a scratch model is made of."""
    place = Path(section.id).expanduser()
    return (place.resolve() if place.exists() else section.id, section.scratch)


def _backbone(config: Recipe, dtype: str) -> Backbone:
    section = config.model
    scratch = None if section.scratch is None else ScratchConfig(**asdict(section.scratch))
    name = section.id if scratch is None else "scratch"
    # Trained weights are float32: loading them as anything else would round them first.
    wanted = "float32" if section.adaptation.kind == "full" else dtype
    return load_backbone(name, dtype=wanted, scratch=scratch, seed=config.seed)


def adaptation_of(section: ModelConfig) -> Adaptation:
    """What a recipe trains."""
    return Adaptation(**asdict(section.adaptation))


def computing_of(section: ModelConfig) -> Computing:
    """How a recipe's passes are computed."""
    return Computing(**{each.name: getattr(section, each.name) for each in fields(Computing)})


def _adapted(backbone: Backbone, section: ModelConfig) -> LanguageModel:
    try:
        return LanguageModel(backbone, adaptation_of(section), computing_of(section))
    except ValueError as error:
        raise ConfigError(f"model.adaptation: {error}") from error
