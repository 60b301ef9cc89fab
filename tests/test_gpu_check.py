"""The script for machines with GPUs, as far as a machine without one can tell: its recipes, and its table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightning_iterppo.composition import compose
from lightning_iterppo.errors import ConfigError

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_check_is_a_recipe_and_what_is_refused_is_refused(script: ModuleType) -> None:
    assert len({check.name for check in script.CHECKS}) == len(script.CHECKS)
    for check in script.CHECKS:
        words = [*script.SMALL, *check.words]
        if check.refused:
            with pytest.raises(ConfigError, match="which shards the weights"):
                compose("shop", words)
        else:
            assert compose("shop", words).name == "shop"


def test_what_a_machine_has_not_got_is_skipped_and_says_why(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    reasons = {check.name: script.skipped(check, "gpu", gpus=1) for check in script.CHECKS}
    assert reasons["ddp on all devices"] == reasons["fsdp on all devices"] == "needs 2 GPUs"
    assert reasons["collecting by vLLM"] == "vllm is not installed"
    assert reasons["float32"] is None and reasons["deepspeed"] is None


def test_a_run_that_the_library_refuses_is_no_failure(script: ModuleType) -> None:
    refused = next(check for check in script.CHECKS if check.name == "deepspeed")
    found = script.run(refused, "cpu", 120)
    assert found.status == "refused" and "which shards the weights in its own way" in found.said
    assert script.table([found]).splitlines()[-1].startswith("| deepspeed | refused |")
