"""Packages that only some imports need: those of the extra ``import``."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_iterppo.errors import ConfigError


def need(module: str, purpose: str) -> Any:
    """A module of a package of the extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = {"stdnum": "python-stdnum"}.get(module.split(".")[0], module.split(".")[0])
        raise ConfigError(
            f"{package} is needed {purpose} and is not installed: pip install 'lightning-iterppo[import]'"
        ) from error
