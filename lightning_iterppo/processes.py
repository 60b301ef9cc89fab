"""Which of several processes this is, before they know of each other; no torch here."""

from __future__ import annotations

import os


def is_first() -> bool:
    """Whether this is the first of several processes, or the only one.

    Lightning and torchrun number the processes of a machine; torchrun and SLURM number all of them.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"))
