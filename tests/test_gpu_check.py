"""The script for machines with GPUs, as far as a machine without one can tell: its recipes, and its table."""

from __future__ import annotations

from types import ModuleType

import pytest
from scripts import load_script

from lightning_iterppo.composition import compose


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/gpu/check.py")


def test_every_check_is_a_recipe(script: ModuleType) -> None:
    assert len({check.name for check in script.CHECKS}) == len(script.CHECKS)
    for check in script.CHECKS:
        assert compose("shop", [*script.SMALL, *check.words]).name == "shop"


def test_what_a_machine_has_not_got_is_skipped_and_says_why(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    reasons = {check.name: script.skipped(check, "gpu", gpus=1) for check in script.CHECKS}
    assert reasons["ddp on all devices"] == reasons["fsdp on all devices"] == "needs 2 GPUs"
    assert reasons["collecting by vLLM"] == "vllm is not installed"
    assert reasons["float32"] is None
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    by_deepspeed = next(check for check in script.CHECKS if check.name == "deepspeed on all devices")
    assert script.skipped(by_deepspeed, "gpu", gpus=2) == "deepspeed is not installed"


def test_a_run_that_cannot_begin_is_a_failure_with_its_last_line(script: ModuleType) -> None:
    found = script.run(script.Check("no such loss", ("critic.loss=none",)), "cpu", 120)
    assert found.status == "failed" and "critic.loss is none" in found.said
    assert script.table([found]).splitlines()[-1].startswith("| no such loss | failed |")
