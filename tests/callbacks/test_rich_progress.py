"""RichProgress: what is shown on a terminal and in a log, and that it is closed whatever happens."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lightning_iterppo.callbacks import RichProgress
from lightning_iterppo.callbacks.phase_clock import PhaseClock

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def plain(log: io.StringIO, time: Any) -> RichProgress:
    callback = RichProgress(console=Console(file=log, width=80))
    callback._clock = PhaseClock(time)
    return callback


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    return Terminal()


@pytest.fixture
def live(screen: Terminal) -> RichProgress:
    return RichProgress(refresh_per_second=50, console=Console(file=screen, width=200))


def rendered(callback: RichProgress) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(callback._display())
    return text.getvalue()


# In a log


def test_a_log_gets_a_line_at_every_change_of_phase(plain: RichProgress, loop: Any, log: io.StringIO) -> None:
    plain.on_run_start(loop)
    loop.move("collect", iteration=1, total=100, unit="conversations")
    plain.on_progress(loop)
    loop.move("improve", iteration=1, round=1)
    plain.on_progress(loop)
    lines = [line.split("  ")[0] for line in log.getvalue().splitlines()]
    assert lines == [
        "starting",
        "iteration 2/3 · collecting conversations, 0/100 conversations",
        "iteration 2/3 · improving the policy · round 2/2",
    ]


def test_a_log_gets_at_most_a_line_every_ten_seconds(
    plain: RichProgress, loop: Any, log: io.StringIO, time: Any
) -> None:
    plain.on_run_start(loop)
    for second in range(25):
        time.time += 1
        loop.move("collect", done=second, total=100, unit="conversations", tokens=50 * second)
        plain.on_progress(loop)
    lines = [line for line in log.getvalue().splitlines() if "collecting" in line]
    assert [line.split(", ")[1].split("  ")[0] for line in lines] == [
        "0/100 conversations",
        "10/100 conversations",
        "20/100 conversations",
    ]
    assert lines[-1].endswith("20 conversations collected · 48 tokens/s · elapsed 0:21 · left –")
    assert "\x1b" not in log.getvalue()


def test_a_pipe_is_no_terminal_even_when_colours_are_forced(
    loop: Any, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    callback = RichProgress(console=Console(file=log))
    callback.on_run_start(loop)
    callback.on_run_end(loop)
    assert HIDE_CURSOR not in log.getvalue()


def test_the_default_output_is_standard_error(loop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    callback = RichProgress()
    callback.on_run_start(loop)
    callback.on_run_end(loop)
    out, err = capsys.readouterr()
    assert out == ""
    assert "finished" in err


# Outcome rates


def test_rates_are_printed_once_as_they_become_known(
    plain: RichProgress, loop: Any, log: io.StringIO, rate: Any
) -> None:
    def rates() -> list[str]:
        return [line for line in log.getvalue().splitlines() if line.startswith("outcome rate")]

    plain.on_run_start(loop)
    assert rates() == []
    loop.summary.before = rate(0.25, (0.2, 0.3), 240)
    plain.on_progress(loop)
    plain.on_progress(loop)
    assert rates() == ["outcome rate before training: 25.0% (95 % interval 20.0% to 30.0%, 240 conversations)"]
    loop.finish_iteration(0, collected=0.3, held_out=0.4)
    plain.on_iteration_end(loop)
    loop.summary.after, loop.summary.after_held_out = rate(0.5), rate(0.45)
    plain.on_run_end(loop)
    assert [line.split(" (")[0] for line in rates()[1:]] == [
        "outcome rate iteration 1, collected: 30.0%",
        "outcome rate iteration 1, measured after it: 40.0%",
        "outcome rate after training: 50.0%",
        "outcome rate after training, unfamiliar customers: 45.0%",
    ]


# On a terminal


def test_the_display_shows_where_the_run_is(live: RichProgress, loop: Any, time: Any) -> None:
    live._clock = PhaseClock(time)
    live.on_run_start(loop)
    try:
        loop.finish_iteration(0)  # 100 conversations
        time.time += 60
        loop.move("collect", iteration=1, done=48, total=192, unit="conversations", tokens=3000)
        live.on_progress(loop)
        time.time += 5
        text = rendered(live)
    finally:
        live.on_run_end(loop)
    assert "iteration 2/3 · collecting conversations" in text
    assert "━" in text
    assert "48/192 conversations" in text
    assert "148 conversations collected · 50 tokens/s · elapsed 1:05 · left –" in text


def test_the_time_left_is_shown_when_it_can_be_estimated(live: RichProgress, loop: Any, time: Any) -> None:
    live._clock = PhaseClock(time)
    loop.settings.evaluation_conversations = 0
    loop.settings.rounds = 1
    live.on_run_start(loop)
    try:
        for phase in ("collect", "evaluate", "improve"):
            loop.move(phase)
            live.on_progress(loop)
            time.time += 600
            loop.move(phase, done=9, total=9, unit="batches")
            live.on_progress(loop)
        text = rendered(live)
    finally:
        live.on_run_end(loop)
    assert "elapsed 30:00 · left ~1:00:00" in text


def test_a_phase_without_a_known_total_has_a_display_too(live: RichProgress, loop: Any) -> None:
    live.on_run_start(loop)
    try:
        loop.move("logs", done=7, unit="files")
        live.on_progress(loop)
        assert "7 files" in rendered(live)
    finally:
        live.on_run_end(loop)


@pytest.mark.parametrize("hook", ["on_run_end", "on_run_exception"])
def test_the_terminal_is_given_back(
    live: RichProgress, loop: Any, screen: Terminal, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    streams = sys.stdout, sys.stderr
    live.on_run_start(loop)
    assert HIDE_CURSOR in screen.getvalue()
    assert sys.stdout is not streams[0]
    getattr(live, hook)(loop)
    assert screen.getvalue().rindex(SHOW_CURSOR) > screen.getvalue().rindex(HIDE_CURSOR)
    assert (sys.stdout, sys.stderr) == streams


def test_output_that_goes_into_a_pipe_is_not_taken_away(
    live: RichProgress, loop: Any, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", log)
    live.on_run_start(loop)
    try:
        print("a figure")
    finally:
        live.on_run_end(loop)
    assert log.getvalue() == "a figure\n"


def test_the_end_says_why_a_run_stopped_early(plain: RichProgress, loop: Any, log: io.StringIO, time: Any) -> None:
    plain.on_run_start(loop)
    time.time += 75
    loop.stop_reason = "the target is reached"
    plain.on_run_end(loop)
    assert log.getvalue().splitlines()[-1] == "finished in 1:15: the target is reached"


def test_an_exception_is_said_with_its_place(plain: RichProgress, loop: Any, log: io.StringIO) -> None:
    plain.on_run_start(loop)
    loop.move("evaluate", done=3, total=9, unit="batches")
    plain.on_run_exception(loop)
    assert log.getvalue().splitlines()[-1] == "stopped after 0:00, iteration 1/3 · fitting Q, 3/9 batches"


# Everything else


def test_other_ranks_print_nothing(plain: RichProgress, loop: Any, log: io.StringIO) -> None:
    loop.is_main = False
    for hook in ("on_run_start", "on_iteration_start", "on_progress", "on_collect_end", "on_critic_fit_end"):
        getattr(plain, hook)(loop)
    for hook in ("on_improve_end", "on_iteration_end", "on_run_exception", "on_run_end"):
        getattr(plain, hook)(loop)
    assert log.getvalue() == ""


def test_conversations_of_the_running_iteration_count_once(
    plain: RichProgress, loop: Any, log: io.StringIO, conversation: Any
) -> None:
    plain.on_run_start(loop)
    loop.finish_iteration(0)  # 100 conversations
    loop.conversations = [conversation] * 40
    loop.move("improve", iteration=1)
    plain.on_progress(loop)
    assert "140 conversations collected" in log.getvalue().splitlines()[-1]
    loop.move("after", iteration=1)
    plain.on_progress(loop)
    assert "140 conversations collected" in log.getvalue().splitlines()[-1]
    loop.finish_iteration(1)
    loop.move("collect", iteration=2, done=0, total=100, unit="conversations")
    plain.on_progress(loop)
    assert "200 conversations collected" in log.getvalue().splitlines()[-1]


def test_the_measurement_of_an_iteration_is_not_the_final_one(plain: RichProgress, loop: Any, log: io.StringIO) -> None:
    plain.on_run_start(loop)
    loop.move("after", iteration=1)
    plain.on_progress(loop)
    assert log.getvalue().splitlines()[-1].startswith("iteration 2/3 · measuring the policy  ")
    loop.finish_iteration(1)
    loop.move("collect", iteration=2)
    plain.on_progress(loop)
    loop.finish_iteration(2)
    loop.move("after", iteration=2)
    plain.on_progress(loop)
    assert log.getvalue().splitlines()[-1].startswith("measuring the policy after training  ")


def test_a_resumed_run_knows_the_time_used_and_left(
    plain: RichProgress, loop: Any, log: io.StringIO, time: Any
) -> None:
    loop.settings.evaluation_conversations = 0
    first = RichProgress()
    first._clock = PhaseClock(time)
    first._clock.begin()
    for phase in ("collect", "evaluate", "improve", "done"):
        loop.move(phase)
        first._clock.observe(loop.progress)
        time.time += 60
        first._clock.observe(loop.progress)
    plain.load_state_dict(first.state_dict())
    loop.move("collect", iteration=1)
    plain.on_run_start(loop)
    assert log.getvalue().splitlines()[-1].endswith("elapsed 4:00 · left ~6:00")


def test_it_can_be_copied_and_pickled_while_it_shows(live: RichProgress, loop: Any) -> None:
    live.on_run_start(loop)
    try:
        pickle.loads(pickle.dumps(live))
        copy.deepcopy(live)
    finally:
        live.on_run_end(loop)


@pytest.mark.parametrize("arguments", [{"refresh_per_second": 0}, {"refresh_per_second": "4"}, {"console": "stderr"}])
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=next(iter(arguments))):
        RichProgress(**arguments)
