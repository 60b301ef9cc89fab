"""Collecting through a server that nobody here wrote: transformers' own, which loads the weights that it is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_iterppo.cli import main
from lightning_iterppo.data.logs import read_conversations

pytestmark = pytest.mark.slow


def test_a_run_collects_through_it_with_the_weights_of_each_iteration(
    transformers_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    status = main(
        [
            *("train", "shop", "-o", str(run), "engine=transformers", f"engine.base_url={transformers_server}"),
            *("engine.timeout=600", "logs.conversations=12", "warm_start.epochs=1", "loop.iterations=1"),
            *("loop.conversations=4", "loop.evaluation_conversations=0", "loop.held_out_conversations=0"),
            *("sampling.max_new_tokens=12", "policy.rounds=1", "policy.log_conversations=0", "trainer.threads=1"),
            *("policy.conversations_per_round=4", "policy.samples_per_state=1", "critic.epochs=0"),
        ]
    )
    assert status == 0, capsys.readouterr().err
    talks = read_conversations(run / "conversations" / "iteration-000.jsonl")
    made = [turn.suggestion for talk in talks for turn in talk.turns]
    assert len(talks) == 4 and all(made) and all(len(s.logprobs) == len(s.token_ids) > 0 for s in made if s)
    # It says no log-probabilities, so that all are the trainer's own: of fluent English, by the warm-started weights.
    summary = json.loads((run / "summary.json").read_text())
    assert summary["engine"]["iteration-000"]["recomputed"] == len(made)
    mean = sum(sum(s.logprobs) for s in made if s) / sum(len(s.logprobs) for s in made if s)
    assert -2.5 < mean < -0.05
