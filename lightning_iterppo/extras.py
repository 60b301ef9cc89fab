"""Packages that only some commands need: those of the extras."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_iterppo.errors import ConfigError


def need(module: str, purpose: str, extra: str) -> Any:
    """A module of a package of an extra.

    Args:
        module: its name.
        purpose: what it is needed for, as ``to read …``.
        extra: the extra of setup.cfg that brings it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = {"stdnum": "python-stdnum"}.get(module.split(".")[0], module.split(".")[0])
        raise ConfigError(
            f"{package} is needed {purpose} and is not installed: pip install 'lightning-iterppo[{extra}]'"
        ) from error
