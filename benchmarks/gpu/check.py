"""Runs what needs a GPU, each in a process of its own, on a shop that is made small, and prints a table.

A run that ends is *ok*; what is not installed, or needs more devices than there are, is *skipped*. ``--accelerator
cpu`` runs what a processor can do of it, which is how the script itself is tested.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from lightning_iterppo.machine import describe_machine

#: Seconds for all of it, and for one check.
WHOLE, ONE = 460.0, 150.0
#: A processor is slower, and nobody lends it by the minute.
SLOWER = 8
PORT = 8791
SMALL = (
    *("logs.conversations=24", "warm_start.epochs=1", "loop.iterations=1", "loop.conversations=16"),
    *("loop.evaluation_conversations=16", "loop.held_out_conversations=0", "policy.rounds=1"),
    *("policy.conversations_per_round=8", "policy.log_conversations=0", "critic.epochs=1"),
)


@dataclass(frozen=True)
class Check:
    """One run.

    Args:
        name: in the table.
        words: the recipe's, behind `iterppo train shop`.
        gpus: how many it needs at least.
        needs: a package that it needs.
        server: whether vLLM has to be started for it.
    """

    name: str
    words: tuple[str, ...]
    gpus: int = 1
    needs: str | None = None
    server: bool = False


LORA = "model/adaptation=lora"
FULL = ("model/adaptation=full", "policy.learning_rate=1e-5", "warm_start.learning_rate=1e-4")
CHECKS = (
    Check("float32", ("trainer.precision=32-true", "model.dtype=float32")),
    Check("bf16-mixed, weights of bfloat16", ("trainer.precision=bf16-mixed", "model.dtype=bfloat16")),
    Check("QLoRA: weights of 4 bits", (LORA, "trainer.precision=bf16-mixed", "model.dtype=nf4"), needs="bitsandbytes"),
    Check("torch.compile", ("trainer.precision=bf16-mixed", "model.compile=true")),
    Check("checkpointing, micro batches measured", (LORA, "model.checkpointing=true", "trainer.micro_batch=auto")),
    Check("full fine-tuning", FULL),
    Check("collecting by vLLM", (LORA, "engine=vllm", f"engine.base_url=http://localhost:{PORT}/v1"), server=True),
    Check(
        "the same, beside the training", (LORA, "engine=vllm", "loop.overlap=true", "loop.iterations=2"), server=True
    ),
    Check("ddp on all devices", ("trainer=ddp",), gpus=2),
    Check("fsdp on all devices", (LORA, "trainer=fsdp"), gpus=2),
    Check("full fine-tuning by fsdp on all devices", (*FULL, "trainer=fsdp"), gpus=2),
    Check("deepspeed on all devices", (LORA, "trainer=deepspeed"), gpus=2, needs="deepspeed"),
    Check("full fine-tuning by deepspeed on all devices", (*FULL, "trainer=deepspeed"), gpus=2, needs="deepspeed"),
)


@dataclass
class Result:
    """How a check ended.

    Args:
        name: the check's.
        status: ok, failed or skipped.
        seconds: it took, start of the process included.
        gpu_gb: the most that was allocated on a GPU; None without one.
        mismatch: mean difference of log-probabilities, in nats a token, between a server and the trainer.
        said: the last line, where it did not end well.
    """

    name: str
    status: str
    seconds: float = 0.0
    gpu_gb: float | None = None
    mismatch: float | None = None
    said: str = ""


def one(words: list[str], report: Path) -> int:
    """A run in this process, which then says how much of a GPU it took."""
    from lightning_iterppo.cli import main as iterppo

    status = iterppo(words)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    report.write_text(json.dumps({"gpu_gb": peak}), encoding="utf-8")
    return status


def run(check: Check, accelerator: str, limit: float) -> Result:
    """A check, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        directory, report = Path(place) / "run", Path(place) / "report.json"
        device = () if check.gpus > 1 else (f"trainer.accelerator={accelerator}", "trainer.devices=1")
        words = ["train", "shop", "-o", str(directory), *SMALL, *device, *check.words]
        if check.server:
            words.append(f"engine.base_url=http://localhost:{PORT}/v1")
        started = time.monotonic()
        command = [sys.executable, __file__, "--one", str(report), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return Result(check.name, "failed", limit, said=f"took longer than {limit:.0f} s")
        seconds = time.monotonic() - started
        lines = done.stderr.strip().splitlines() or [""]
        if done.returncode:
            return Result(check.name, "failed", seconds, said=lines[-1][:200])
        engine = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["engine"]
        differences = [each["difference_mean"] for each in engine.values() if each["difference_mean"] is not None]
        mismatch = max(differences) if differences else None
        return Result(check.name, "ok", seconds, json.loads(report.read_text(encoding="utf-8"))["gpu_gb"], mismatch)


def skipped(check: Check, accelerator: str, gpus: int) -> str | None:
    """Why a check is not for this machine."""
    if check.needs and importlib.util.find_spec(check.needs) is None:
        return f"{check.needs} is not installed"
    if check.server and shutil.which("vllm") is None:
        return "vllm is not installed"
    if check.server and accelerator == "cpu":
        return "vllm is for a GPU here"
    if check.gpus > 1 and gpus < check.gpus:
        return f"needs {check.gpus} GPUs"
    return None


@contextmanager
def served(wanted: bool) -> Iterator[None]:
    """The default model served by vLLM, where it is wanted."""
    if not wanted:
        yield
        return
    from lightning_iterppo.models.smollm2 import smollm2_directory

    command = ["vllm", "serve", str(smollm2_directory()), "--port", str(PORT), "--enable-lora", "--max-lora-rank", "16"]
    more = ["--generation-config", "vllm", "--gpu-memory-utilization", "0.3", "--max-model-len", "2048"]
    environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *more], env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + ONE
            while process.poll() is None and time.monotonic() < until:
                try:
                    urllib.request.urlopen(f"http://localhost:{PORT}/health", timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(1)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def table(results: list[Result]) -> str:
    """As Markdown."""
    lines = [
        "| what | | s | GB of a GPU | nats a token beside the server's | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in results:
        memory = "–" if each.gpu_gb is None else f"{each.gpu_gb:.2f}"
        mismatch = "–" if each.mismatch is None else f"{each.mismatch:.4f}"
        lines.append(f"| {each.name} | {each.status} | {each.seconds:.0f} | {memory} | {mismatch} | {each.said} |")
    return "\n".join(lines)


def main() -> int:
    """Checks, prints, writes; 1 if something failed."""
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[3:], Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--only", nargs="+", help="names, or parts of them")
    parser.add_argument("--output", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    gpus = torch.cuda.device_count()
    if arguments.accelerator == "gpu" and gpus == 0:
        sys.exit("there is no GPU here; --accelerator cpu runs what a processor can do")
    chosen = [c for c in CHECKS if not arguments.only or any(part in c.name for part in arguments.only)]
    reasons = {check.name: skipped(check, arguments.accelerator, gpus) for check in chosen}
    slower = SLOWER if arguments.accelerator == "cpu" else 1
    started = time.monotonic()
    results: list[Result] = []
    for server in (False, True):
        own = [check for check in chosen if check.server == server]
        with served(any(check.server and reasons[check.name] is None for check in own)):
            for check in own:
                left = slower * WHOLE - (time.monotonic() - started)
                why = reasons[check.name] or (None if left > 10 else "no time is left")
                found = (
                    Result(check.name, "skipped", said=why)
                    if why
                    else run(check, arguments.accelerator, min(slower * ONE, left))
                )
                print(f"{found.name}: {found.status}, {found.seconds:.0f} s {found.said}", file=sys.stderr, flush=True)
                results.append(found)
    print(table(results))
    if arguments.output is not None:
        record = {
            "command": "benchmarks/gpu/check.sh " + " ".join(sys.argv[1:]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": describe_machine(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
            "results": [asdict(each) for each in results],
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(any(each.status == "failed" for each in results))


if __name__ == "__main__":
    sys.exit(main())
