"""ConversationStoreWriter: every conversation once, under names of its own, whatever stops the run in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks import ConversationStoreWriter
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.data.store import ConversationStore
from lightning_iterppo.errors import ConfigError, StoreError
from lightning_iterppo.run_directory import RunDirectory


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


def stored(url: str, **which: Any) -> list[Conversation]:
    with ConversationStore(url, create=False) as store:
        return list(store.conversations(**which))


class Stop(Exception):
    pass


class StopOnce(Callback):
    """Ends a run the first time that it comes to a moment of its second iteration, after the callbacks before it."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def _reached(self, moment: str, loop: Any) -> None:
        if moment == self.moment and loop.progress.iteration == 1:
            raise Stop(moment)

    def on_progress(self, loop: Any) -> None:
        self._reached(loop.progress.phase, loop)

    def on_collect_end(self, loop: Any) -> None:
        self._reached("on_collect_end", loop)

    def on_critic_fit_end(self, loop: Any) -> None:
        self._reached("on_critic_fit_end", loop)

    def on_iteration_end(self, loop: Any) -> None:
        self._reached("on_iteration_end", loop)


MOMENTS = ("collect", "on_collect_end", "evaluate", "on_critic_fit_end", "improve", "on_iteration_end")


@pytest.mark.parametrize("moment", [None, *MOMENTS])
def test_every_conversation_is_written_once(
    url: str, tmp_path: Path, make_loop: Callable[..., Any], moment: str | None
) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    settings = {"evaluation_conversations": 2, "rounds": 1, "critic_epochs": 1}
    writer = ConversationStoreWriter(url)
    if moment is not None:
        with pytest.raises(Stop):
            make_loop(settings=settings, run_dir=run, callbacks=[writer, StopOnce(moment)]).run()
        writer = ConversationStoreWriter(url)
    loop = make_loop(settings=settings, run_dir=run, callbacks=[writer])
    if moment is not None:
        loop.load_state_dict(run.load_state())
    summary = loop.run()

    assert writer.run is not None and writer.run.startswith("run-")
    for iteration in (0, 1):
        found = stored(url, run=writer.run, iteration=iteration)
        own = read_conversations(run.conversations(iteration))
        assert [each.id for each in found] == [f"{writer.run}/{each.id}" for each in own] and len(own) == 20
        for ours, theirs in zip(own, found, strict=True):
            assert (theirs.outcome, theirs.seed, theirs.closing) == (ours.outcome, ours.seed, ours.closing)
            assert theirs.policy_version == f"{writer.run}/iteration-00{iteration}"
            for turn, kept in zip(ours.turns, theirs.turns, strict=True):
                assert turn.suggestion is not None and turn.suggestion.token_ids and turn.suggestion.logprobs
                named = replace(turn.suggestion, policy_version=theirs.policy_version)
                assert kept == replace(turn, suggestion=named)
    assert len(stored(url)) == 40
    with ConversationStore(url) as store:
        iterations = store.iterations()
    assert [(each.run, each.iteration) for each in iterations] == [(writer.run, 0), (writer.run, 1)]
    assert [each.figures for each in iterations] == summary_of(summary)
    assert iterations[1].policy_version == f"{writer.run}/iteration-001"


def summary_of(summary: Any) -> list[Any]:
    import json

    found: list[Any] = json.loads(json.dumps(summary.to_json()))["iterations"]
    return found


def test_a_run_from_logs_alone_writes_its_figures_only(
    url: str, make_loop: Callable[..., Any], conversation: Conversation
) -> None:
    logs = [replace(conversation, id=str(number), outcome=float(number % 2)) for number in range(8)]
    plain = [replace(each, turns=(replace(each.turns[0], customer="red ?", message="no"),)) for each in logs]
    writer = ConversationStoreWriter(url)
    settings = {"iterations": 1, "rounds": 1, "critic_epochs": 1, "validation_fraction": 0.3}
    make_loop(settings=settings, customer=None, logs=plain, callbacks=[writer]).run()
    with ConversationStore(url) as store:
        assert list(store.conversations()) == []
        assert [each.policy_version for each in store.iterations(writer.run)] == [None]


def test_two_runs_do_not_meet(url: str, loop: Any, conversation: Conversation) -> None:
    names = set()
    for _ in range(2):
        writer = ConversationStoreWriter(url)
        loop.conversations = [conversation]
        for hook in (writer.on_run_start, writer.on_collect_end, writer.on_critic_fit_end):
            hook(loop)
        names.add(writer.run)
    assert {each.id for each in stored(url)} == {f"{name}/shop-17" for name in names} and len(names) == 2


def test_a_name_is_given_once(url: str, loop: Any, conversation: Conversation) -> None:
    loop.conversations = [conversation]
    writer = ConversationStoreWriter(url, run="mine")
    for hook in (writer.on_run_start, writer.on_collect_end, writer.on_critic_fit_end):
        hook(loop)
    assert [each.id for each in stored(url, run="mine")] == ["mine/shop-17"]
    with pytest.raises(ConfigError, match="has a run 'mine' already"):
        ConversationStoreWriter(url, run="mine").on_run_start(loop)
    again = ConversationStoreWriter(url, run="mine")
    again.load_state_dict(writer.state_dict())
    again.on_run_start(loop)
    assert again.run == "mine"


def test_other_ranks_write_nothing(url: str, loop: Any, conversation: Conversation) -> None:
    loop.is_main = False
    loop.conversations = [conversation]
    writer = ConversationStoreWriter(url)
    for hook in (writer.on_run_start, writer.on_collect_end, writer.on_critic_fit_end, writer.on_iteration_end):
        hook(loop)
    assert stored(url) == []


def test_what_is_wrong_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no directory"):
        ConversationStoreWriter(str(tmp_path / "nowhere" / "store.db"))
    for arguments in ({"url": ""}, {"url": 3}, {"url": "x.db", "run": ""}, {"url": "x.db", "run": 3}):
        with pytest.raises(MisconfigurationException, match="must be text"):
            ConversationStoreWriter(**arguments)  # type: ignore[arg-type]
