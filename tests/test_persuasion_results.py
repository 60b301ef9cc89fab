"""What `docs/recipes.md` says of the recipe `persuasion` is what is recorded of a run of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from lightning_iterppo.errors import RunDirectoryError


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmarks/persuasion/train.py")


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
