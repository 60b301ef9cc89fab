"""Whole runs as processes of their own: killed with SIGKILL and continued, and two processes that share the work."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
SMALL = [
    *("loop.iterations=2", "loop.conversations=40", "loop.evaluation_conversations=20", "loop.batch=20"),
    *("critic.epochs=2", "policy.rounds=2", "policy.ppo_epochs=1", "policy.samples_per_state=2"),
    *("warm_start.epochs=1", "callbacks.progress=null"),
]


def iterppo(place: Path, *words: str, script: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`iterppo WORDS`, or a script in its place, in a process of its own, in ``place``."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        environment.pop(name, None)
    program = [str(Path(sys.executable).with_name("iterppo"))] if script is None else [sys.executable, str(script)]
    command = [*program, *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=1800)


def comparable(run: Path) -> dict[str, Any]:
    """What a run left behind, without what the clock decides."""
    summary = json.loads((run / "summary.json").read_text())
    for key in ("seconds", "evaluation_seconds", "peak_memory_bytes", "machine"):
        summary.pop(key)
    for iteration in summary["iterations"]:
        iteration.pop("seconds")
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        metrics = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    talks = {file.name: file.read_text() for file in sorted((run / "conversations").iterdir())}
    return {"summary": summary, "metrics": metrics, "conversations": talks}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    done = iterppo(place, "train", "probe", "-o", "run", *SMALL)
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["collect", "evaluate", "improve"])
def test_killed_in_the_middle_of_a_phase_and_resumed(undisturbed: Path, tmp_path: Path, phase: str) -> None:
    stop = [
        "callbacks.stop._target_=named_in_recipes.InterruptOnce",
        *(f"callbacks.stop.phase={phase}", "callbacks.stop.marker=marker", "callbacks.stop.kill=true"),
    ]
    killed = iterppo(tmp_path, "train", "probe", "-o", "run", *SMALL, *stop)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = tmp_path / "run"
    before = json.loads((run / "summary.json").read_text())
    assert (before["status"], len(before["iterations"])) == ("running", 1)
    resumed = iterppo(tmp_path, "train", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert comparable(run) == comparable(undisturbed)


#: Numbers that two processes cannot divide, down to a batch of one.
UNEVEN = [
    *("loop.iterations=2", "loop.conversations=41", "loop.evaluation_conversations=7", "loop.batch=20"),
    *("critic.epochs=2", "critic.batch_conversations=11", "policy.rounds=2", "policy.ppo_epochs=1"),
    *("policy.conversations_per_round=13", "policy.batch_conversations=6", "policy.samples_per_state=2"),
    *("warm_start.epochs=1", "logs.conversations=31", "callbacks.progress=null"),
]


def talks_of(run: Path, name: str) -> list[dict[str, Any]]:
    lines = (run / "conversations" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_likelihoods(talk: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """A conversation, and apart from it how likely its suggestions were."""
    suggestions = [turn["suggestion"] for turn in talk["turns"] if turn.get("suggestion")]
    return talk, [value for each in suggestions for value in each.pop("logprobs")]


def numbers_of(run: Path) -> list[dict[str, float]]:
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    timed = ("seconds", "per_second", "memory")
    return [{key: value for key, value in row.items() if not any(each in key for each in timed)} for row in rows]


@pytest.mark.parametrize("kind", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(tmp_path: Path, kind: str) -> None:
    """The same conversations, figures and weights, up to the order of sums."""
    for trainer in ("cpu", "ddp-cpu"):
        words = [f"trainer={trainer}", f"model/adaptation={kind}", *UNEVEN]
        done = iterppo(tmp_path, "train", "probe", "-o", trainer, *words)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "cpu", tmp_path / "ddp-cpu"
    seeds: set[int] = set()
    for name, count in {"iteration-000": 41, "iteration-001": 41, "before": 7, "after": 7}.items():
        expected, found = talks_of(one, name), talks_of(two, name)
        assert len(expected) == len(found) == count
        for own, other in zip(found, expected, strict=True):
            (own_talk, own_logprobs), (other_talk, other_logprobs) = map(without_likelihoods, (own, other))
            assert own_talk == other_talk
            assert own_logprobs == pytest.approx(other_logprobs, abs=1e-4)
            seeds.add(own["seed"])
    assert len(seeds) == 41 + 41 + 7
    wanted, summary = (json.loads((run / "summary.json").read_text()) for run in (one, two))
    assert summary["status"] == "finished"
    for key in ("before", "after", "logs"):
        assert summary[key] == wanted[key]
    for mine, theirs in zip(summary["iterations"], wanted["iterations"], strict=True):
        assert (mine["collected"], mine["tokens"]) == (theirs["collected"], theirs["tokens"])
        for part in ("critic", "policy"):
            assert mine[part] == pytest.approx(theirs[part], abs=1e-4)
        assert mine["critic"]["turns"] == 2 * 8  # the held-out fifth, counted over both processes
    assert len(numbers_of(one)) > 40
    for mine, theirs in zip(numbers_of(two), numbers_of(one), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert_same_weights(two, one, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        pytest.param(["model/adaptation=full", "trainer.precision=32-true"], id="full"),
        pytest.param(
            ["model/adaptation=lora", "model.dtype=bfloat16", "trainer.precision=bf16-mixed"], id="lora-bfloat16"
        ),
    ],
)
def test_gradients_and_moments_in_parts_learn_what_whole_ones_learn(tmp_path: Path, own: list[str]) -> None:
    """DeepSpeed for real, on two processes of the processor: what DDP does.

    Without clipping, which DeepSpeed rounds in its own way: bfloat16 makes a last digit of a gradient another policy.
    """
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    words = [*own, *UNEVEN, "trainer.gradient_clip_val=null"]
    ours = iterppo(tmp_path, "train", "probe", "-o", "whole", "trainer=ddp-cpu", *words)
    assert ours.returncode == 0, ours.stderr
    here = ["trainer.accelerator=cpu", "trainer.devices=2"]
    script = HERE / "deepspeed_on_processor.py"
    done = iterppo(tmp_path, "train", "probe", "-o", "parts", "trainer=deepspeed", *here, *words, script=script)
    assert done.returncode == 0, done.stderr
    assert numbers_of(tmp_path / "parts") == [pytest.approx(row, abs=1e-5) for row in numbers_of(tmp_path / "whole")]
    for name in ("before", "iteration-000", "iteration-001", "after"):
        found, expected = talks_of(tmp_path / "parts", name), talks_of(tmp_path / "whole", name)
        for own_talk, other_talk in zip(found, expected, strict=True):
            assert without_likelihoods(own_talk)[0] == without_likelihoods(other_talk)[0]
    assert_same_weights(tmp_path / "parts", tmp_path / "whole", atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_gradients_come_in_one_order_whatever_passes_a_process_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The script that is started looks at every step of both processes."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    monkeypatch.setenv("UNEVEN_PASSES", "1")
    words = ["trainer=deepspeed", "trainer.accelerator=cpu", "trainer.devices=2", f"model/adaptation={kind}"]
    script = HERE / "deepspeed_on_processor.py"
    done = iterppo(tmp_path, "train", "probe", *words, *UNEVEN, "model.checkpointing=true", script=script)
    assert done.returncode == 0, done.stderr


SHARDED = [
    *("loop.iterations=2", "loop.conversations=24", "loop.evaluation_conversations=0"),
    *("loop.batch=12", "critic.epochs=2", "policy.rounds=2", "policy.ppo_epochs=1", "warm_start.epochs=1"),
    # With seed 1 two held-out turns are worth the same but for rounding, and AUROC steps by a pair.
    *("callbacks.progress=null", "model.trim_padding=false", "seed=2"),
]


def weights(run: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints" / "iteration-001" / part).glob("*model.safetensors")
    return load_file(file)


def assert_same_weights(run: Path, other: Path, *, atol: float, rtol: float) -> None:
    """The policy and the critic of two runs of two iterations."""
    for part in ("policy", "critic"):
        found, expected = weights(run, part), weights(other, part)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_in_shards_learn_what_whole_ones_learn(tmp_path: Path, kind: str) -> None:
    """FSDP for real, on two processes of the processor: the same as two whole copies, up to the order of sums."""
    for strategy in ("fsdp-cpu", "ddp-cpu"):
        done = iterppo(
            tmp_path, "train", "probe", "-o", strategy, f"trainer={strategy}", *SHARDED, f"model/adaptation={kind}"
        )
        assert done.returncode == 0, done.stderr
    shards, whole = (json.loads((tmp_path / s / "summary.json").read_text()) for s in ("fsdp-cpu", "ddp-cpu"))
    for own, other in zip(shards["iterations"], whole["iterations"], strict=True):
        for part in ("critic", "policy"):
            assert own[part] == pytest.approx(other[part], abs=1e-4)
    assert_same_weights(tmp_path / "fsdp-cpu", tmp_path / "ddp-cpu", atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_in_shards_that_was_killed_goes_on_and_its_policy_is_one_for_one_process(
    tmp_path: Path, kind: str
) -> None:
    adaptation = f"model/adaptation={kind}"
    words = ["train", "probe", "-o", "run", "trainer=fsdp-cpu", *SHARDED, "loop.iterations=3", adaptation]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).with_name("iterppo")), *words]
    summary = tmp_path / "run" / "summary.json"
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
        started = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        until = time.monotonic() + 600
        while not (summary.is_file() and json.loads(summary.read_text())["iterations"]):
            assert started.poll() is None and time.monotonic() < until, (tmp_path / "log.txt").read_text()[-2000:]
            time.sleep(0.2)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    resumed = iterppo(tmp_path, "train", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads(summary.read_text())["iterations"]) == 3
    done = iterppo(tmp_path, "evaluate", "probe", "--policy", "run", "-n", "8", "--json", adaptation)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["conversations"] == 8
