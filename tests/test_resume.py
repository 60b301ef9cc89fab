"""A run that was interrupted and goes on ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.errors import RunDirectoryError
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import CRITIC, POLICY, REFERENCE
from lightning_iterppo.run_directory import RunDirectory

Make = Callable[..., IterativePPOLoop]


class Interrupted(Exception):
    pass


class Interrupt(Callback):
    """Raises at one moment of a run: inside a phase, or in a hook."""

    def __init__(self, moment: str, iteration: int) -> None:
        self.moment, self.iteration = moment, iteration
        self.counted = 0

    def _reached(self, moment: str, loop: IterativePPOLoop) -> None:
        if moment == self.moment and loop.progress.iteration == self.iteration:
            self.counted += 1
            if self.counted == (3 if moment in ("collect", "evaluate", "improve", "warm-start") else 1):
                raise Interrupted(moment)

    def on_progress(self, loop: IterativePPOLoop) -> None:
        # Batches for the fits: whatever was trained by then must not leave a trace.
        if loop.progress.phase in ("collect", "before", "after") or loop.progress.unit == "batches":
            self._reached(loop.progress.phase, loop)

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        self._reached("on_collect_end", loop)

    def on_improve_end(self, loop: IterativePPOLoop) -> None:
        self._reached("on_improve_end", loop)

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        self._reached("on_iteration_end", loop)


class Counter(Callback):
    """A callback with something to remember."""

    def __init__(self) -> None:
        self.iterations = 0

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        self.iterations += 1
        loop.policy.kl_coefficient *= 1.5

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations = state_dict["iterations"]


class LikesEven:
    """Buys after an even number of characters: no model always says so or never, so Q has something to explain."""

    def reset(self, seed: int) -> str:
        return ("red ?", "blue ?")[seed % 2]

    def reply(self, history: list[Message]) -> CustomerReply:
        return CustomerReply("yes", reward=0.5 * (len(history[-1].content) % 2 == 0), done=len(history) > 2)


def logs() -> list[Conversation]:
    return [
        Conversation(f"log-{n}", (Turn("red ?", ("red", "no")[n % 2], reward=float(n % 2 == 0)),), outcome=1.0 - n % 2)
        for n in range(12)
    ]


def a_loop(make: Make, kind: str, run: RunDirectory, *callbacks: Callback) -> IterativePPOLoop:
    return make(
        kind,
        settings={
            **{"rounds": 2, "warm_start_epochs": 2, "evaluate_every": 2, "conversations": 40},
            **{"logged_reward": "return", "fresh_weight": None, "policy_history": 1},
        },
        policy={"kl_reference_coefficient": 0.1},
        customer=LikesEven,
        callbacks=[Counter(), *callbacks],
        logs=logs(),
        run_dir=run,
    )


def outcome(loop: IterativePPOLoop) -> dict[str, Any]:
    """Everything that must not depend on an interruption."""
    assert loop.run_dir is not None
    summary = loop.summary.to_json()
    for key in ("seconds", "evaluation_seconds", "peak_memory_bytes"):
        summary.pop(key)
    for iteration in summary["iterations"]:
        iteration.pop("seconds")
    files = sorted((loop.run_dir.path / "conversations").iterdir())
    return {
        "summary": summary,
        "conversations": {file.name: file.read_text() for file in files},
        "steps": loop.steps,
        "kl_coefficient": loop.policy.kl_coefficient,
        "counted": [callback.iterations for callback in loop.callbacks if isinstance(callback, Counter)],
        "examples": [None if talk is None else talk.id for talk in loop.summary.examples],
    }


def weights(loop: IterativePPOLoop) -> list[torch.Tensor]:
    tensors = [t for name in (POLICY, CRITIC, REFERENCE) for t in loop.language_model.variant_tensors(name).values()]
    return [*tensors, *loop.critic.head.state_dict().values(), *loop.policy.value_head.state_dict().values()]


@pytest.fixture(scope="module")
def undisturbed(make_loop: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], IterativePPOLoop]:
    known: dict[str, IterativePPOLoop] = {}

    def run(kind: str) -> IterativePPOLoop:
        if kind not in known:
            path = tmp_path_factory.mktemp(kind) / "run"
            known[kind] = a_loop(make_loop, kind, RunDirectory.create(path, ""))
            known[kind].run()
            # What weighs the fresh responses of an improvement, so a resumed one must know it again.
            assert all(i.critic["explained_variance"] is not None for i in known[kind].summary.iterations)
        return known[kind]

    return run


INSIDE = [("collect", 1), ("evaluate", 1), ("improve", 1)]
ELSEWHERE = [
    *(("warm-start", 0), ("before", 0), ("on_collect_end", 0), ("on_improve_end", 0), ("on_iteration_end", 0)),
    *(("on_iteration_end", 1), ("after", 1)),
]


@pytest.mark.parametrize(
    ("kind", "moment", "iteration"),
    [*(("full", *each) for each in INSIDE + ELSEWHERE), *(("lora", *each) for each in INSIDE)],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    make_loop: Make,
    undisturbed: Callable[[str], IterativePPOLoop],
    tmp_path: Path,
    kind: str,
    moment: str,
    iteration: int,
) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    with pytest.raises(Interrupted, match=moment):
        a_loop(make_loop, kind, run, Interrupt(moment, iteration)).run()
    finished = run.read_summary() if run.summary.exists() else None
    assert finished is not None and finished.status == "failed"

    loop = a_loop(make_loop, kind, run)
    state = run.load_state()
    assert (state is None) == (moment == "warm-start")  # nothing was finished yet
    if state is not None:
        loop.load_state_dict(state)
        assert loop.summary.status == "running"
    loop.run()
    expected = undisturbed(kind)
    assert outcome(loop) == outcome(expected)
    for found, wanted in zip(weights(loop), weights(expected), strict=True):
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_a_finished_run_goes_on_to_its_end_at_once(
    make_loop: Make, undisturbed: Callable[[str], IterativePPOLoop]
) -> None:
    expected = undisturbed("full")
    assert expected.run_dir is not None
    before = outcome(expected)
    loop = a_loop(make_loop, "full", expected.run_dir, Interrupt("collect", 0))
    state = expected.run_dir.load_state()
    assert state is not None
    loop.load_state_dict(state)
    loop.run()
    assert outcome(loop) == before


def test_the_state_of_another_model_is_refused(make_loop: Make, undisturbed: Callable[[str], IterativePPOLoop]) -> None:
    directory = undisturbed("full").run_dir
    assert directory is not None
    state = directory.load_state()
    assert state is not None
    with pytest.raises(ValueError, match="another model or adaptation"):
        make_loop("lora").load_state_dict(state)


def test_a_damaged_state_is_told_in_one_line(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    assert run.load_state() is None
    run.save_state({"finished": []})
    assert run.load_state() == {"finished": []}
    run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:40])
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt cannot be read") as caught:
        run.load_state()
    assert "\n" not in str(caught.value)


def test_a_state_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    run.save_state({"finished": ["warm-start"]})
    with pytest.raises(Exception, match=r"pickle|local object"):
        run.save_state({"finished": lambda: None})
    assert run.load_state() == {"finished": ["warm-start"]}
    assert [path.name for path in run.last_checkpoint.parent.iterdir()] == ["last.ckpt"]
