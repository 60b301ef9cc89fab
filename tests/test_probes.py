"""The ladder of probes: its rungs compose, the result says who is to blame, and the first and last are learnt."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from lightning_iterppo import probes
from lightning_iterppo.cli import main
from lightning_iterppo.composition import compose
from lightning_iterppo.probes import PROBES, Probe, ProbeResult


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_every_probe_is_a_recipe(probe: Probe) -> None:
    recipe = compose("ladder", list(probe.overrides))
    assert recipe.logs["rung"] == recipe.customer.get("rung", "prompt")


def result(name: str, passed: bool) -> ProbeResult:
    return ProbeResult(name, f"what {name} needs", 0.5, 0.99 if passed else 0.5, passed, 7.0)


def test_the_table_names_what_failed() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(probes.render([result("one", True), result("two", False)]))
    _, first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first.split()[:5] == ["ok", "one", "50%", "99%", "7"]
    assert second.split()[:5] == ["failed", "two", "50%", "50%", "7"]
    assert "what two needs" in second


@pytest.mark.parametrize("failing", [None, "memory"])
def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str | None) -> None:
    monkeypatch.setattr(probes, "run", lambda probe: result(probe.name, probe.name != failing))
    assert main(["doctor", "--probes"]) == int(failing is not None)
    assert capsys.readouterr().out.count("\n") == len(PROBES) + 1
    assert main(["doctor", "--probes", "--json"]) == int(failing is not None)
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] == (failing is None)
    assert [one["name"] for one in found["probes"]] == [probe.name for probe in PROBES]


@pytest.mark.parametrize("name", [pytest.param("constant", marks=pytest.mark.slow), "edited"])
def test_a_probe_is_learnt(name: str) -> None:
    (probe,) = (probe for probe in PROBES if probe.name == name)
    found = probes.run(probe)
    assert found.passed, found
    assert found.before < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_every_probe_is_learnt_with_any_seed(probe: Probe, seed: int) -> None:
    found = probes.run(probe, seed=seed)
    assert found.passed, found
