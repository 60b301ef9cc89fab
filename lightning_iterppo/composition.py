"""Recipes into typed configurations: composed by Hydra from groups, strict, with errors of one line.

Hydra composes the files and the choices of groups; the values on the command line are set here, so that keys of the
open sections need no ``+`` and an unknown key is answered with the nearest one and the file its section comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lightning_iterppo.config import OPEN_SECTIONS, Recipe
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.recipe_files import (
    RecipeFiles,
    RecipeInfo,
    available_groups,
    available_recipes,
    nearest,
    yaml_problem,
)
from lightning_iterppo.strictness import Strictness, one_line
from lightning_iterppo.targets import instantiate

__all__ = [
    "RecipeInfo",
    "available_groups",
    "available_recipes",
    "compose",
    "instantiate",
    "load_recipe",
    "to_yaml",
]

#: Sections that are one thing: choosing another replaces it whole, instead of merging two classes' arguments.
_SINGLE = ("customer", "held_out_customer", "logs", "engine")
#: Where the logs that belong to our own customers are made.
_OURS = "lightning_iterppo.customers"
#: The keys that say what an open section is. Setting one forgets the arguments of what it was.
_IDENTITY = ("_target_", "path")


def compose(recipe: str = "shop", overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with its overrides applied.

    Args:
        recipe: the name of one of ours, or a path to a YAML file.
        overrides: ``policy.clip=0.1``, ``model/adaptation=full``, ``~callbacks.progress``, in Hydra's grammar.

    Raises:
        ConfigError: one line that names what is wrong, the nearest valid name, and the file.
    """
    files = RecipeFiles(recipe)
    choices, values = _split(_without_short_forms(overrides), files)
    config, chosen = _compose_files(files, choices)
    _forget_lower_layers(config, files)
    for override in values:
        _forget_former(config, override, [each.key_or_group for each in values])
    strict = Strictness(files, chosen)
    for override in values:
        _set(config, override, strict)
    given = [*(each.key_or_group for each in values), *(each.package or each.key_or_group for each in choices)]
    _drop_foreign_held_out(config, files, given)
    _imitate_nobody_twice(config, files, given)
    if config.get("customer"):
        _learn_only_to_speak_from_foreign_logs(config, files, given)
    elif "customer" in given and "loop.iterations" not in given:
        # Logs say what became of the messages of those who wrote them, and nothing new to a second iteration.
        OmegaConf.update(config, "loop.iterations", 1, force_add=True)
    return strict.typed(config)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe that `to_yaml` wrote, e.g. ``RUN/recipe.yaml``, equal to the one that was written.

    Raises:
        ConfigError: the file is missing or does not hold a recipe.
    """
    return compose(str(Path(path).absolute()))


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML; `load_recipe` reads it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


# -- reading the command line -------------------------------------------------------------------------------------


def _without_short_forms(overrides: Iterable[str]) -> Iterator[str]:
    """``data=logs data.path=FILE`` is short for no customer, and logs of a file."""
    for line in overrides:
        if line == "data=logs":
            yield from ("customer=none", "logs=file")
        else:
            yield f"logs.{line.removeprefix('data.')}" if line.startswith("data.path=") else line


def _split(overrides: Iterable[str], files: RecipeFiles) -> tuple[list[Override], list[Override]]:
    """Choices of groups, and values."""
    groups = available_groups(files.roots)
    choices: list[Override] = []
    values: list[Override] = []
    for line in overrides:
        if "=" not in line and not line.startswith("~"):
            raise ConfigError(f"{line!r} is no override: write key=value, e.g. policy.clip=0.1")
        try:
            override = OverridesParser.create().parse_override(line)
        except HydraException as error:
            raise ConfigError(
                f"cannot read {line!r}: put a value with special characters in quotes, key='…'"
            ) from error
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise ConfigError(f"{line!r} has several values: write a list as [a,b], or a text with a comma in quotes")
        if "/" in key and key not in groups:
            raise ConfigError(f"there is no group {key!r}: {nearest(key, groups)}")
        empty = value is None and key not in _SINGLE
        if key not in groups or override.is_delete() or empty or isinstance(value, dict | list):
            values.append(override)
            continue
        if value is not None and str(value) not in groups[key]:
            raise ConfigError(f"group {key} has no option {str(value)!r}: {nearest(str(value), groups[key])}")
        choices.append(override)
    return choices, values


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _compose_files(files: RecipeFiles, choices: Sequence[Override]) -> tuple[DictConfig, dict[str, str]]:
    """The files without values of the command line, and the option of every group in effect."""
    config, chosen = _hydra(files, files.name, [])
    lines = []
    for choice in choices:
        section, option = choice.package or choice.key_or_group, choice.value()
        if section in _SINGLE:
            continue
        name = f"{choice.key_or_group}@{choice.package}" if choice.package else choice.key_or_group
        # A group that the recipe does not mention (a composed recipe.yaml mentions none) is added to it.
        lines.append(f"{'' if name in chosen else '+'}{name}={'null' if option is None else _quoted(str(option))}")
    if lines:
        config, chosen = _hydra(files, files.name, lines)
    for choice in choices:
        section, option = choice.package or choice.key_or_group, choice.value()
        if section not in _SINGLE:
            continue
        alone = {} if option is None else _option(files, choice.key_or_group, str(option))
        config[section] = alone
        chosen.pop(section, None)
        chosen[f"{choice.key_or_group}@{section}"] = str(option)
    return config, chosen


def _option(files: RecipeFiles, group: str, option: str) -> Any:
    """What one option of a group says by itself."""
    return _hydra(files, f"{group}/{option}", [])[0].get(group) or {}


def _hydra(files: RecipeFiles, name: str, lines: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    # Hydra looks for the configuration it starts from in the first directory only.
    first = next((root for root in files.roots if (root / f"{name}.yaml").is_file()), files.roots[0])
    paths = ",".join(_quoted(f"file://{root}") for root in files.roots if root != first)
    try:
        with initialize_config_dir(str(first), version_base="1.3"):
            composed = hydra_compose(name, [*lines, f"hydra.searchpath=[{paths}]"], return_hydra_config=True)
    except MissingConfigException as error:
        raise ConfigError(_missing_file(error, files)) from error
    except yaml.YAMLError as error:
        raise ConfigError(yaml_problem(error, None)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe {name}: {one_line(error)}") from error
    chosen = {str(group): str(option) for group, option in composed.hydra.runtime.choices.items()}
    with open_dict(composed):
        del composed["hydra"]
    OmegaConf.set_struct(composed, False)
    return composed, {group: option for group, option in chosen.items() if not group.startswith("hydra/")}


def _missing_file(error: MissingConfigException, files: RecipeFiles) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    groups = available_groups(files.roots)
    by = f"recipe {files.name} asks for"
    if group in groups:
        return f"{by} {group}: {option}, which is not there: {nearest(option, groups[group])}"
    if group:
        return f"{by} the group {group!r}, which is not there: {nearest(group, groups)}"
    return f"{by} {option!r}, which is not there: {nearest(option, [info.name for info in available_recipes()])}"


# -- what belongs to another class ----------------------------------------------------------------------------------


def _forget_lower_layers(config: DictConfig, files: RecipeFiles) -> None:
    """A recipe that names its own class in an open section does not inherit the arguments of the class it replaces."""
    for section in _SINGLE:
        keep: set[str] | None = None
        identity: tuple[str, Any] | None = None
        for _, said in files.layers:
            own = said.get(section)
            if not isinstance(own, dict):
                continue
            names = [key for key in _IDENTITY if key in own]
            if names:
                keep, identity = set(own), (names[0], own[names[0]])
            elif keep is not None:
                keep |= set(own)
        composed = config.get(section)
        if keep is None or identity is None or not isinstance(composed, DictConfig):
            continue
        if composed.get(identity[0]) == identity[1]:
            for key in [key for key in composed if key not in keep]:
                del composed[key]


def _forget_former(config: DictConfig, override: Override, given: Sequence[str]) -> None:
    """Setting ``customer._target_`` drops the former customer's arguments; those given beside it are set afterwards."""
    section, _, name = override.key_or_group.rpartition(".")
    if name not in _IDENTITY or section.split(".")[0] not in (*OPEN_SECTIONS, "trainer"):
        return
    if name == "path" and section != "logs":
        return
    former = OmegaConf.select(config, section)
    if isinstance(former, DictConfig):
        # In `logs` the two exclude each other; otherwise the same class once more keeps what it had.
        if former.get(name) == override.value():
            return
        for key in [str(key) for key in former if f"{section}.{key!s}" not in given]:
            del former[key]
    elif former is not None:
        OmegaConf.update(config, section, {}, merge=False)


def _drop_foreign_held_out(config: DictConfig, files: RecipeFiles, given: Sequence[str]) -> None:
    """The held-out customer of a recipe goes with its customer: another customer has no such second figure."""
    held_out, customer = config.get("held_out_customer"), config.get("customer")
    if not held_out or not isinstance(held_out, DictConfig) or not isinstance(customer, DictConfig):
        return
    replaced = "customer" in given or "customer._target_" in given
    wanted = not replaced and any("held_out_customer" in said for _, said in files.layers)
    if wanted or any(key.split(".")[0] == "held_out_customer" for key in given):
        return
    if held_out.get("_target_") != customer.get("_target_"):
        config["held_out_customer"] = {}
        if "loop.held_out_conversations" not in given:
            OmegaConf.update(config, "loop.held_out_conversations", 0)


def _learn_only_to_speak_from_foreign_logs(config: DictConfig, files: RecipeFiles, given: Sequence[str]) -> None:
    """Our scripted logs are of our customers' business: beside another one their outcomes and states mean nothing."""
    said = [layer for _, layer in files.layers]
    replaced = (
        "customer" in given
        or "customer._target_" in given
        or any(isinstance(layer.get("customer"), dict) and "_target_" in layer["customer"] for layer in said)
    )
    chosen = any(key.split(".")[0] == "logs" for key in given) or any("logs" in layer for layer in said)
    target = str(OmegaConf.select(config, "logs._target_", default=""))
    if not replaced or chosen or not target.startswith(f"{_OURS}."):
        return
    for key, value in (("critic.use_logs", False), ("policy.log_conversations", 0)):
        section, name = key.split(".")
        if key not in given and not any(name in (layer.get(section) or {}) for layer in said):
            OmegaConf.update(config, key, value, force_add=True)


def _imitate_nobody_twice(config: DictConfig, files: RecipeFiles, given: Sequence[str]) -> None:
    """A policy that a run starts from speaks already: no warm start, unless it is asked for beside the start."""
    if OmegaConf.select(config, "model.start") is None or "warm_start.epochs" in given:
        return
    if "model.start" not in given:
        said = [layer for _, layer in files.layers]
        first = next((n for n, layer in enumerate(said) if "start" in (layer.get("model") or {})), len(said))
        if any("epochs" in (layer.get("warm_start") or {}) for layer in said[first:]):
            return
    OmegaConf.update(config, "warm_start.epochs", 0, force_add=True)


# -- values --------------------------------------------------------------------------------------------------------


def _set(config: DictConfig, override: Override, strict: Strictness) -> None:
    key = override.key_or_group
    if override.package is not None:
        raise ConfigError(
            f"{override.input_line!r}: {key!r} is no group: {nearest(key, available_groups(strict.files.roots))}"
        )
    strict.check_key(key)
    if not override.is_delete():
        try:
            value = {} if override.value() is None and key in OPEN_SECTIONS else override.value()
            OmegaConf.update(config, key, value, merge=value != {}, force_add=True)
        except (OmegaConfBaseException, AttributeError) as error:
            raise ConfigError(f"cannot set {key}: {one_line(error)}") from error
        return
    section, _, name = key.rpartition(".")
    if key.split(".")[0] not in OPEN_SECTIONS:
        raise ConfigError(f"{override.input_line!r}: only keys of {', '.join(OPEN_SECTIONS)} can be left out")
    holder = OmegaConf.select(config, section) if section else config
    if not isinstance(holder, DictConfig) or name not in holder:
        names = list(holder) if isinstance(holder, DictConfig) else []
        raise ConfigError(
            f"there is no {key} to leave out: {nearest(name, map(str, names)) if names else 'it is empty'}"
        )
    del holder[name]
