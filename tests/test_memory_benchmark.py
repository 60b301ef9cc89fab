"""The benchmark of memory: as many turns as it says, the same for a seed, and the memory of the process it started."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lightning_iterppo.composition import compose

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(HERE)
    yield importlib.import_module("critic_memory")
    sys.modules.pop("critic_memory")


def test_its_logs_have_the_turns_that_were_asked_for(benchmark: ModuleType) -> None:
    made = list(benchmark.conversations(500, 1))
    assert sum(len(talk.turns) for talk in made) == 500
    assert 5 < 500 / len(made) < 7
    assert made == list(benchmark.conversations(500, 1)) != list(benchmark.conversations(500, 2))
    won = sum(talk.outcome or 0.0 for talk in made) / len(made)
    assert 0.2 < won < 0.9
    words = set(compose(benchmark.RECIPE[0], benchmark.RECIPE[1:]).model.scratch.vocabulary)
    said = {word for talk in made for turn in talk.turns for word in f"{turn.customer} {turn.message}".split()}
    assert said <= words


def test_the_peak_is_that_of_the_command(benchmark: ModuleType, tmp_path: Path) -> None:
    measured = benchmark.measure(["show", "probe"], tmp_path / "log.txt")
    assert "name: probe" in (tmp_path / "log.txt").read_text()
    assert measured.seconds > 0 and 5e6 < measured.peak_memory_bytes < 2e9
    with pytest.raises(RuntimeError, match=r"show failed:\niterppo: .*nothing"):
        benchmark.measure(["show", "nothing"], tmp_path / "log.txt")


def test_its_table_and_its_spread(benchmark: ModuleType) -> None:
    sizes = [
        {
            "turns": turns,
            "conversations": turns // 5,
            "import": {"seconds": 3.0, "peak_memory_bytes": 200_000_000},
            "fit_critic": {"seconds": 2.0, "peak_memory_bytes": peak},
            "score": {"seconds": 1.0, "peak_memory_bytes": 500_000_000},
        }
        for turns, peak in ((10_000, 600_000_000), (100_000, 630_000_000))
    ]
    assert benchmark.table(sizes).splitlines()[-1] == "| 100,000 | 20,000 | 200 | 3 | 630 | 2 | 500 | 1 |"
    assert benchmark.spread(sizes, "fit_critic") == pytest.approx(0.05)
    assert benchmark.spread(sizes, "score") == 0.0
