"""What `docs/recipes.md` says of the recipe `persuasion` is what is recorded of a run of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from lightning_iterppo.errors import RunDirectoryError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("persuasion_train", ROOT / "benchmarks" / "persuasion" / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_is_recorded(benchmark: ModuleType) -> None:
    record = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    page = benchmark.PAGE.read_text(encoding="utf-8")
    assert f"<!-- persuasion:begin -->\n{benchmark.table(record)}\n<!-- persuasion:end -->" in page


def test_the_run_is_as_long_as_it_may_be(benchmark: ModuleType) -> None:
    record = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    assert record["seconds"] < 30 * 60


def test_a_directory_that_is_no_run_is_not_recorded(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError):
        benchmark.kept(tmp_path)
