"""A run writes into a store, and others read from it: to start warm, to learn from it alone, and to fit a critic."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_iterppo import operations
from lightning_iterppo.build import open_logs
from lightning_iterppo.cli import main
from lightning_iterppo.composition import compose, load_recipe
from lightning_iterppo.config import Recipe
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.data.store import ConversationStore, StoredConversations
from lightning_iterppo.errors import IterPPOError, LogDataError

SMALL = [
    *("model/adaptation=full", "trainer=cpu", "model.scratch.hidden_size=16", "model.scratch.layers=1"),
    *("model.scratch.heads=2", "loop.iterations=1", "loop.conversations=24", "loop.evaluation_conversations=4"),
    *("warm_start.epochs=1", "critic.batch_conversations=8", "policy.rounds=1", "policy.batch_conversations=8"),
    *("policy.ppo_epochs=1", "policy.samples_per_state=2", "policy.conversations_per_round=8"),
]
WITHOUT = ["callbacks=minimal", "callbacks.progress=null"]


def recipe(*more: str) -> Recipe:
    return compose("probe", [*SMALL, *more])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that a run has written into."""
    place = tmp_path_factory.mktemp("first")
    url = str(place / "store.db")
    words = ("callbacks=store", f"callbacks.store.url={url}", "callbacks.progress=null", "logs.conversations=24")
    operations.train(recipe(*words), place / "run", resume=False)
    with ConversationStore(url, create=False) as found:
        made = list(found.conversations())
    assert len(made) == len(read_conversations(place / "run" / "conversations" / "iteration-000.jsonl")) == 24
    suggestions = [turn.suggestion for each in made for turn in each.turns]
    assert all(each is not None and each.token_ids and each.logprobs and each.policy_version for each in suggestions)
    # Resuming what is finished writes nothing.
    operations.train(load_recipe(place / "run" / "recipe.yaml"), place / "run", resume=True)
    with ConversationStore(url, create=False) as found:
        assert list(found.conversations()) == made
        assert len(found.iterations()) == 1
    return url


def test_another_run_starts_from_it(store: str, tmp_path: Path) -> None:
    config = recipe("logs=store", f"logs.url={store}", "logs.known_outcomes=true", *WITHOUT)
    summary = operations.train(config, tmp_path / "run", resume=False)
    assert summary.logs is not None and summary.logs.conversations == 24
    with ConversationStore(store, create=False) as found:
        assert read_conversations(tmp_path / "run" / "conversations" / "logs.jsonl") == list(found.conversations())


def test_a_run_learns_from_it_alone(store: str, tmp_path: Path) -> None:
    config = recipe("customer=none", "logs=store", f"logs.url={store}", *WITHOUT)
    summary = operations.train(config, tmp_path / "run", resume=False)
    assert len(summary.iterations) == 1 and summary.iterations[0].critic["turns"]


def test_a_critic_is_fitted_to_it_where_it_is(store: str, tmp_path: Path) -> None:
    config = recipe("logs=store", f"logs.url={store}")
    assert isinstance(open_logs(config), StoredConversations)
    figures = operations.fit_critic(config, [], [], tmp_path / "critic")
    with ConversationStore(store, create=False) as found:
        write_conversations(tmp_path / "same.jsonl", found.conversations())
    same = operations.fit_critic(config, [tmp_path / "same.jsonl"], [], tmp_path / "other")
    assert figures.pop("critic") != same.pop("critic")
    assert figures == same and figures["brier"] is not None


def test_logs_that_are_not_there_are_told_before_any_work(store: str, tmp_path: Path) -> None:
    for words, error in ((["logs.run=nobody"], LogDataError), ([f"logs.url={tmp_path}/none.db"], IterPPOError)):
        with pytest.raises(error):
            operations.train(recipe("logs=store", f"logs.url={store}", *words), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_a_critic_needs_logs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fit-critic", "probe", "logs=none", "-o", str(tmp_path / "critic")]) == 2
    assert "give --data FILE…, or those of a store, logs=store logs.url=URL" in capsys.readouterr().err
