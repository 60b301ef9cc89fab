"""Objects by import path: what a recipe's ``_target_`` names, made with the arguments beside it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from lightning_iterppo.errors import ConfigError, IterPPOError, describe_exception
from lightning_iterppo.recipe_files import nearest


def resolve(path: str, where: str = "_target_") -> Callable[..., Any]:
    """The class or function at an import path; the working directory is importable.

    Args:
        path: e.g. ``my_module.MyCustomer``; a method of a class works too.
        where: the recipe's section, for the message.

    Raises:
        ConfigError: the module is not there or does not import, or it has no such name.
    """
    # As `python my_script.py` would: what lies in the working directory comes first.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    parts = path.split(".")
    if len(parts) < 2 or not all(parts):
        raise ConfigError(f"{where}: {path!r} is no import path; write module.Class")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if _exists(name, where):
            break
    else:
        raise ConfigError(f"{where}: there is no module {parts[0]!r}, neither installed nor in {os.getcwd()}")
    found: Any = _import(name, where)
    for depth, part in enumerate(parts[length:], start=length):
        holder = ".".join(parts[:depth])
        if not hasattr(found, part):
            options = getattr(found, "__all__", None) or [each for each in vars(found) if not each.startswith("_")]
            # Its file too: a module of the user's may have the name of one that was imported before it.
            file = getattr(found, "__file__", None)
            named = f"{holder} ({file})" if file else holder
            raise ConfigError(f"{where}: {named} has no {part}" + (f"; {nearest(part, options)}" if options else ""))
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where}: {path} is a {type(found).__name__}, neither a class nor a function")
    return found  # type: ignore[no-any-return]


def instantiate(spec: dict[str, Any], where: str = "", /, **offered: Any) -> Any:
    """Calls what ``spec["_target_"]`` names with the other keys as arguments, nested specifications first.

    Args:
        spec: a section of a recipe; it is not changed.
        where: the section's name, for messages.
        **offered: more arguments; each is given only if the target takes one of that name and ``spec`` has none.

    Raises:
        ConfigError: the target cannot be found, its arguments do not fit, or it refuses them.
    """
    target = spec.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{where or 'a section'}._target_ must be an import path, found {target!r}")
    where = where or target
    made = resolve(target, where)
    arguments = {key: _nested(value, f"{where}.{key}") for key, value in spec.items() if key != "_target_"}
    try:
        parameters = inspect.signature(made).parameters
    except ValueError:  # Built in, and its signature is not known: the call itself decides.
        parameters = None
    if parameters is not None:
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        named = [
            name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        ]
        for key, value in offered.items():
            if (takes_any or key in named) and key not in arguments:
                arguments[key] = value
        _check_arguments(target, where, arguments, None if takes_any else named)
        missing = [
            name for name in named if parameters[name].default is inspect.Parameter.empty and name not in arguments
        ]
        if missing:
            raise ConfigError(f"{where}: {target} needs {missing[0]}; give {where}.{missing[0]}=…")
    try:
        return made(**arguments)
    except (IterPPOError, OSError):
        raise
    except Exception as error:
        # The recipe's values met a class that refuses them, or a user's own class fails: its line says more than ours.
        raise ConfigError(f"{where}: {target}: {describe_exception(error)}") from error


def _check_arguments(target: str, where: str, arguments: dict[str, Any], named: list[str] | None) -> None:
    for key in arguments:
        if named is not None and key not in named:
            takes = nearest(key, named) if named else "it takes no arguments"
            raise ConfigError(f"{where}.{key}: {target} has no argument {key!r}; {takes}")


def _nested(value: Any, where: str) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        return instantiate(value, where)
    if isinstance(value, list):
        return [_nested(each, where) for each in value]
    return value


def _exists(name: str, where: str) -> bool:
    """Whether there is a module of this name. Its parents are imported to find out, so they may fail."""
    parent = name.rpartition(".")[0]
    if parent:
        if not _exists(parent, where):
            return False
        if not hasattr(_import(parent, where), "__path__"):
            return False
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # A module that was made by hand has no specification.
        return name in sys.modules


def _import(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise ConfigError(f"{where}: {error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        said = describe_exception(error, skip="importlib")
        raise ConfigError(f"{where}: {name} does not import: {said}") from error
