"""ThroughputMonitor: speeds of whole phases and true peaks of memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from lightning_iterppo.callbacks import ThroughputMonitor, throughput_monitor
from lightning_iterppo.callbacks.phase_clock import PhaseClock


@pytest.fixture
def monitor(time: Any) -> ThroughputMonitor:
    callback = ThroughputMonitor()
    callback._clock = PhaseClock(time)
    return callback


def test_speed_of_a_phase_is_over_the_whole_phase(monitor: ThroughputMonitor, loop: Any, time: Any) -> None:
    monitor.on_run_start(loop)
    monitor.on_iteration_start(loop)
    time.time += 10
    loop.move("collect", done=2, total=10, unit="conversations", tokens=100)
    monitor.on_progress(loop)
    time.time += 10
    loop.move("collect", done=10, total=10, unit="conversations", tokens=600)
    monitor.on_collect_end(loop)
    assert loop.metrics["throughput/collect_tokens_per_second"] == 30
    assert loop.metrics["throughput/collect_conversations_per_second"] == 0.5

    time.time += 5
    loop.move("evaluate", done=10, total=10, unit="batches", tokens=1000)
    monitor.on_critic_fit_end(loop)
    assert loop.metrics["throughput/evaluate_tokens_per_second"] == 200
    assert "throughput/evaluate_conversations_per_second" not in loop.metrics
    assert loop.metrics["throughput/collect_tokens_per_second"] == 30


def test_a_later_iteration_replaces_the_figure(monitor: ThroughputMonitor, loop: Any, time: Any) -> None:
    monitor.on_run_start(loop)
    for iteration, tokens in ((0, 100), (1, 300)):
        monitor.on_iteration_start(loop)
        time.time += 10
        loop.move("improve", iteration=iteration, tokens=tokens)
        monitor.on_improve_end(loop)
    assert loop.metrics["throughput/improve_tokens_per_second"] == 30


def test_nothing_generated_is_left_out(monitor: ThroughputMonitor, loop: Any, time: Any) -> None:
    monitor.on_run_start(loop)
    time.time += 10
    loop.move("warm-start")
    monitor.on_progress(loop)
    assert not [name for name in loop.metrics if name.startswith("throughput")]


def test_the_peak_lies_between_what_is_held_now_and_what_the_machine_has(loop: Any) -> None:
    ThroughputMonitor().on_run_start(loop)
    assert psutil.Process().memory_info().rss * 0.5 < loop.metrics["memory/peak_bytes"] < psutil.virtual_memory().total


def test_the_peak_before_a_resume_counts(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([9_000, 2_000, 3_000])
    monkeypatch.setattr(throughput_monitor, "peak_memory_bytes", lambda: next(peaks))
    first, resumed = ThroughputMonitor(), ThroughputMonitor()
    first.on_run_start(loop)
    resumed.load_state_dict(first.state_dict())
    loop.metrics.clear()
    resumed.on_run_start(loop)
    assert loop.metrics["memory/peak_bytes"] == 9_000


def test_an_accelerator_s_peak_is_reported(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "accelerator", fake, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(max_memory_allocated=lambda: 123))
    ThroughputMonitor().on_run_start(loop)
    assert loop.metrics["memory/accelerator_peak_bytes"] == 123


@pytest.mark.parametrize("available", [True, False], ids=["does not count", "none"])
def test_without_an_accelerator_that_counts_its_peak_is_left_out(
    loop: Any, monkeypatch: pytest.MonkeyPatch, available: bool
) -> None:
    fake = SimpleNamespace(is_available=lambda: available, current_accelerator=lambda: torch.device("mps"))
    monkeypatch.setattr(torch, "accelerator", fake, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    ThroughputMonitor().on_run_start(loop)
    assert "memory/accelerator_peak_bytes" not in loop.metrics
