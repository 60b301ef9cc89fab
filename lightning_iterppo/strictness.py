"""A composed tree against the schema: unknown keys, wrong types and missing values, each an error of one line."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_iterppo.config import Recipe
from lightning_iterppo.config_rules import validate
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.recipe_files import RecipeFiles, nearest, show_path


class Strictness:
    """The schema `Recipe` as a judge of one recipe's tree; its messages name the file a key comes from.

    Args:
        files: the recipe's files.
        chosen: the chosen option of every group.
    """

    def __init__(self, files: RecipeFiles, chosen: Mapping[str, str]) -> None:
        self.files = files
        self.chosen = chosen

    def check_key(self, key: str) -> None:
        """Tests a key of the command line.

        Raises:
            ConfigError: it is neither in the schema nor inside an open section.
        """
        here: Any = Recipe
        parts = key.split(".")
        for depth, part in enumerate(parts):
            fields = _fields(here)
            if fields is None:
                if here in (dict, Any):
                    return
                above = ".".join(parts[:depth])
                raise ConfigError(f"unknown key {key}: {above} is {_expected(here)}, it has no keys")
            if part not in fields:
                raise ConfigError(self._unknown_key(parts[: depth + 1], fields))
            here = _bare(fields[part])

    def _unknown_key(self, parts: list[str], fields: Iterable[str]) -> str:
        key, above = ".".join(parts), ".".join(parts[:-1])
        file, holds_it = self.files.origin(key, self.chosen)
        if holds_it:
            place = f" in {show_path(file)}"
        else:
            place = f" (section {above} comes from {show_path(file)})" if above else f" (recipe {show_path(file)})"
        # The name may be right and the section wrong or forgotten, as in clip=0.1; else the nearest in this section.
        elsewhere = [each for each in _all_keys(Recipe) if each.split(".")[-1] == parts[-1]]
        options = elsewhere or [f"{above}.{name}".strip(".") for name in fields]
        return f"unknown key {key}{place}: {nearest(key, options)}"

    def typed(self, config: DictConfig) -> Recipe:
        """The composed tree as dataclasses.

        Raises:
            ConfigError: an unknown key, a wrong type, a missing value, or one outside its range.
        """
        try:
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            key = _unresolved(config) or f"recipe {self.files.name}"
            raise ConfigError(f"{key}: {one_line(error)}") from error
        self._check_tree(config, Recipe, "")
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            file, _ = self.files.origin(missing[0], self.chosen)
            raise ConfigError(f"{missing[0]} has no value ({show_path(file)} leaves it to you): add {missing[0]}=…")
        try:
            recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), config))
        except OmegaConfBaseException as error:
            raise ConfigError(self._wrong_type(error, config)) from error
        if not isinstance(recipe, Recipe):
            raise TypeError(f"OmegaConf made a {type(recipe).__name__} of a Recipe")
        recipe.name = recipe.name or self.files.name
        validate(recipe)
        return recipe

    def _check_tree(self, config: DictConfig, schema: Any, above: str) -> None:
        fields = _fields(schema) or {}
        for name in [str(each) for each in config]:
            key = f"{above}.{name}".strip(".")
            if name not in fields:
                raise ConfigError(self._unknown_key(key.split("."), fields))
            hint = fields[name]
            bare = _bare(hint)
            if OmegaConf.is_missing(config, name) or (_fields(bare) is None and bare is not dict):
                continue
            value = config[name]
            if value is None and bare is not hint and bare is not dict:
                continue
            if not isinstance(value, DictConfig):
                found = "null" if value is None else repr(value)
                raise ConfigError(f"{key} is {found}, but it is a section{self._place(key)}: set {key}.KEY=…")
            if bare is not dict:
                self._check_tree(value, bare, key)

    def _wrong_type(self, error: OmegaConfBaseException, config: DictConfig) -> str:
        key = str(error.full_key or "")
        hint: Any = Recipe
        for part in key.split("."):
            hint = (_fields(_bare(hint)) or {}).get(part)
        if not key or hint is None:
            return f"recipe {self.files.name}: {one_line(error)}"
        value = OmegaConf.select(config, key)
        found = (
            "null" if value is None else repr(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
        )
        return f"{key} is {found}, but it must be {_expected(hint)}{self._place(key)}"

    def _place(self, key: str) -> str:
        return f" (see {show_path(self.files.origin(key, self.chosen)[0])})"


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a section",
}


def _expected(hint: Any) -> str:
    """A type in words."""
    bare = _bare(hint)
    return _WORDS.get(bare, "a section") + ("" if bare is hint or bare is dict else ", or null")


def _bare(hint: Any) -> Any:
    """The type without ``| None``; ``dict`` for any mapping."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    return get_origin(hint) or hint


def _fields(schema: Any) -> dict[str, Any] | None:
    """The fields of a dataclass with their types, or None."""
    return get_type_hints(schema) if dataclasses.is_dataclass(schema) and isinstance(schema, type) else None


def _unresolved(config: DictConfig, above: str = "") -> str | None:
    """The first key whose ``${…}`` leads nowhere; OmegaConf does not say it."""
    for name in [str(each) for each in config]:
        key = f"{above}.{name}".strip(".")
        try:
            value = None if OmegaConf.is_missing(config, name) else config[name]
        except OmegaConfBaseException:
            return key
        inner = _unresolved(value, key) if isinstance(value, DictConfig) else None
        if inner is not None:
            return inner
    return None


def _all_keys(schema: Any, above: str = "") -> list[str]:
    keys = []
    for name, hint in (_fields(schema) or {}).items():
        key = f"{above}.{name}".strip(".")
        keys += [key, *_all_keys(_bare(hint), key)]
    return keys


def one_line(error: BaseException) -> str:
    """The innermost reason of an error of Hydra's or OmegaConf's, which both write over several lines."""
    while error.__cause__ is not None and not str(error).strip():
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
