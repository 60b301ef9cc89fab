"""Shows what the loop is doing: a live display on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_iterppo.callbacks.arguments import real_number
from lightning_iterppo.callbacks.outer import OuterCallback
from lightning_iterppo.callbacks.phase_clock import PhaseClock
from lightning_iterppo.callbacks.time_left import ITERATION, time_left

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop
    from lightning_iterppo.summary import Rate

UNKNOWN = "–"
PLAIN_SECONDS = 10.0
"""At most this often a plain line within one phase."""

_NAMES = {
    "start": "starting",
    "logs": "reading the logs",
    "warm-start": "warm start",
    "before": "measuring the policy before training",
    "collect": "collecting conversations",
    "evaluate": "fitting Q",
    "improve": "improving the policy",
    "after": "measuring the policy after training",
    "score": "scoring",
    "done": "done",
}


class RichProgress(OuterCallback):
    """Phase, iteration, a bar of the running phase, conversations so far, tokens/s, time used and time left.

    Conversations are those collected for training. Tokens/s is of the running phase. Time left is of the whole run and
    estimated from the phases seen so far (`time_left`); as long as one is still unseen, it is "–". Outcome rates are
    printed as soon as they are known and stay on the screen. If the output is not a terminal (a pipe, a CI log), there
    is no live display but a plain line at every change of phase and at most every 10 s in between. Rank 0 only.

    It writes to standard error, so that figures on standard output stay alone. Set ``enable_progress_bar=False`` on
    Lightning's Trainer when it is used: two displays would overwrite each other.

    Hooks: all outer ones.

    Args:
        refresh_per_second: how often the live display is drawn. Raising it is smoother and costs a little processor
            time; it does not matter off a terminal.
        console: where to write; by default standard error.
    """

    def __init__(self, refresh_per_second: float = 4, console: Console | None = None) -> None:
        self.refresh_per_second = real_number("RichProgress", "refresh_per_second", refresh_per_second, above=0)
        if console is not None and not isinstance(console, Console):
            raise MisconfigurationException(f"RichProgress(console=…) must be a rich Console, found {console!r}")
        self._console = console
        self._clock = PhaseClock()
        self._live: Live | None = None
        self._loop: IterativePPOLoop | None = None
        self._told: set[tuple[str, int]] = set()
        self._line_due = 0.0

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """Opens the display."""
        if not loop.is_main:
            return
        self._clock.begin()
        self._told.clear()
        self._loop = loop
        if self._console is None:
            self._console = Console(stderr=True)
        # rich takes a pipe for a terminal when FORCE_COLOR is set, as CI often does; a live display needs a real one.
        if self._console.is_interactive and self._console.file.isatty():
            self._live = Live(
                get_renderable=self._display,
                console=self._console,
                refresh_per_second=self.refresh_per_second,
                transient=True,
                # What others print goes above the display, but not what is on its way into a pipe or a file.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        self._show(loop)

    def on_iteration_start(self, loop: IterativePPOLoop) -> None:
        """Brings the display up to date."""
        self._show(loop)

    def on_progress(self, loop: IterativePPOLoop) -> None:
        """Brings the display up to date."""
        self._show(loop)

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        """Brings the display up to date."""
        self._show(loop)

    def on_critic_fit_end(self, loop: IterativePPOLoop) -> None:
        """Brings the display up to date."""
        self._show(loop)

    def on_improve_end(self, loop: IterativePPOLoop) -> None:
        """Brings the display up to date."""
        self._show(loop)

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """Prints the iteration's outcome rates."""
        self._show(loop)

    def on_run_end(self, loop: IterativePPOLoop) -> None:
        """Closes the display and prints the last figures."""
        if not loop.is_main:
            return
        self._show(loop)
        self._close()
        reason = f": {loop.stop_reason}" if loop.stop_reason else ""
        self._print(f"finished in {_duration(self._clock.elapsed)}{reason}")

    def on_run_exception(self, loop: IterativePPOLoop) -> None:
        """Closes the display, so that the error is readable and the cursor is back."""
        if not loop.is_main:
            return
        self._close()
        self._print(f"stopped after {_duration(self._clock.elapsed)}, {describe(loop)}")

    def state_dict(self) -> dict[str, Any]:
        """Durations of the finished phases, so that a resumed run can tell the time left at once."""
        return self._clock.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._clock.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        # Strategies that spawn processes pickle the callbacks; a terminal and its lock cannot go along.
        return {**self.__dict__, "_console": None, "_live": None, "_loop": None}

    def _show(self, loop: IterativePPOLoop) -> None:
        if not loop.is_main:
            return
        changed = self._clock.observe(loop.progress)
        self._tell_rates(loop)
        now = self._clock.now
        if self._live is None and loop.progress.phase != "done" and (changed or now >= self._line_due):
            self._print(f"{describe(loop)}  {self._figures(loop)}")
            self._line_due = now + PLAIN_SECONDS

    def _tell_rates(self, loop: IterativePPOLoop) -> None:
        summary = loop.summary
        self._tell("logs", 0, summary.logs, "of the logs")
        self._tell("before", 0, summary.before, "before training")
        self._tell("before held out", 0, summary.before_held_out, "before training, unfamiliar customers")
        for record in summary.iterations:
            number = record.iteration
            self._tell("collected", number, record.collected, f"iteration {number + 1}, collected")
            self._tell("measured", number, loop.evaluations.get(number), f"iteration {number + 1}, measured after it")
        self._tell("after", 0, summary.after, "after training")
        self._tell("after held out", 0, summary.after_held_out, "after training, unfamiliar customers")

    def _tell(self, kind: str, number: int, rate: Rate | None, label: str) -> None:
        if rate is None or (kind, number) in self._told:
            return
        self._told.add((kind, number))
        low, high = rate.ci95
        self._print(
            f"outcome rate {label}: {rate.outcome_rate:.1%} "
            f"(95 % interval {low:.1%} to {high:.1%}, {rate.conversations} conversations)"
        )

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._loop = None

    def _figures(self, loop: IterativePPOLoop) -> str:
        run = self._clock.running
        speed = None if run is None else run.tokens_per_second
        left = time_left(self._clock, loop.settings, last_iteration=loop.should_stop)
        return (
            f"{conversations_so_far(loop)} conversations collected · "
            f"{UNKNOWN if speed is None else f'{speed:.0f}'} tokens/s · "
            f"elapsed {_duration(self._clock.elapsed)} · left {UNKNOWN if left is None else '~' + _duration(left)}"
        )

    def _display(self) -> RenderableType:
        loop = self._loop
        if loop is None:
            return Text("")
        progress = loop.progress
        total = progress.total or None  # None makes the bar pulse
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=total, completed=progress.done, width=40), _amount(loop))
        return Group(Text(_where(loop), style="bold"), row, Text(self._figures(loop)))


def describe(loop: IterativePPOLoop) -> str:
    """One line: phase, iteration, round, and how much of it is done."""
    amount = _amount(loop)
    return f"{_where(loop)}, {amount}" if amount else _where(loop)


def conversations_so_far(loop: IterativePPOLoop) -> int:
    """Conversations collected for training, those of the running iteration included."""
    progress = loop.progress
    records = loop.summary.iterations
    collected = sum(record.collected.conversations for record in records if record.collected is not None)
    if any(record.iteration == progress.iteration for record in records):
        return collected
    if progress.phase == "collect":
        return collected + progress.done
    # `loop.conversations` is of the running iteration only once its collection is over.
    return collected + (len(loop.conversations) if progress.phase in (*ITERATION[1:], "after") else 0)


def _where(loop: IterativePPOLoop) -> str:
    progress, settings = loop.progress, loop.settings
    parts = [_NAMES.get(progress.phase, progress.phase)]
    recorded = any(record.iteration == progress.iteration for record in loop.summary.iterations)
    between = progress.phase == "after" and not recorded  # the measurement that ends an iteration
    if between:
        parts = ["measuring the policy"]
    if progress.phase in ITERATION or between:
        parts.insert(0, f"iteration {progress.iteration + 1}/{settings.iterations}")
    if progress.phase == "improve":
        parts.append(f"round {progress.round + 1}/{settings.rounds}")
    return " · ".join(parts)


def _amount(loop: IterativePPOLoop) -> str:
    progress = loop.progress
    if progress.total:
        failed = f", {progress.failed} failed" if progress.failed else ""
        return f"{progress.done}/{progress.total} {progress.unit}{failed}"
    return f"{progress.done} {progress.unit}" if progress.done else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
