"""What the package brings is there by name, and trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from iterppo_clinic.patient import DOCTORS, Patient

from lightning_iterppo import compose
from lightning_iterppo.cli import main
from lightning_iterppo.testing import check_customer

TINY = (
    *("loop.iterations=1", "loop.conversations=12", "loop.evaluation_conversations=4", "policy.rounds=1"),
    *("trainer.accelerator=cpu", "trainer.threads=1", "model.scratch.hidden_size=16", "model.scratch.layers=1"),
)


def test_the_patient_keeps_the_protocol() -> None:
    check_customer(Patient, seeds=range(6))
    assert len(DOCTORS) == 3


def test_its_words_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "clinic" in capsys.readouterr().out
    assert compose("probe", ["customer=clinic"]).customer["patience"] == 3


def test_it_trains_with_its_own_customer_and_engine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "clinic", "-o", str(run), "engine=generate", *TINY]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and set(summary["engine"]) == {"before", "iteration-000", "after"}
    assert all(each["difference_max"] < 1e-4 for each in summary["engine"].values())
