"""Who is first, by what each launcher says in the environment."""

from __future__ import annotations

import pytest

from lightning_iterppo.processes import is_first

NAMES = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),  # Lightning's own
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "RANK": "0"}, True),  # torchrun
        ({"LOCAL_RANK": "0", "RANK": "8"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_one_process_is_first_whoever_started_them(
    said: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first
