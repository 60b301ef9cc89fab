"""Checks of callback arguments: each raises Lightning's MisconfigurationException and names argument and value."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException


def whole_number(owner: str, name: str, value: Any, minimum: int) -> int:
    """Gives ``value`` back if it is an integer of at least ``minimum``.

    Raises:
        MisconfigurationException: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise MisconfigurationException(f"{owner}({name}=…) must be a whole number ≥ {minimum}, found {value!r}")
    return value


def real_number(owner: str, name: str, value: Any, *, above: float | None = None, least: float | None = None) -> float:
    """Gives ``value`` back as a float if it is finite, greater than ``above`` and at least ``least``.

    Raises:
        MisconfigurationException: it is not.
    """
    wanted = "a finite number"
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if above is not None:
        wanted += f" > {above:g}"
        good = good and value > above
    if least is not None:
        wanted += f" ≥ {least:g}"
        good = good and value >= least
    if not good:
        raise MisconfigurationException(f"{owner}({name}=…) must be {wanted}, found {value!r}")
    return float(value)
