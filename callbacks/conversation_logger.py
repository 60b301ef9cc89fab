"""Writes a few conversations of every iteration into a Markdown file that a person can read."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks.arguments import whole_number
from lightning_iterppo.callbacks.outer import OuterCallback
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.files import write_text_atomically

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


class ConversationLogger(OuterCallback):
    """After every collection writes ``RUN/samples/iteration-000.md``: the first conversations, turn by turn.

    Every agent message has its disposition, every turn its reward where it earned one, and a suggestion that was not
    sent as it stood is shown beside what was sent. Figures hide a policy that has found a loophole; its sentences do
    not.

    Hooks: ``on_run_start`` (is there anywhere to write?), ``on_collect_end``.

    Args:
        conversations: how many of an iteration's conversations to write, at least 1. Raising it gives more to read.
        console: whether to print them too, on standard error.
    """

    needs_run_directory = True

    def __init__(self, conversations: int = 3, console: bool = False) -> None:
        self.conversations = whole_number("ConversationLogger", "conversations", conversations, 1)
        if not isinstance(console, bool):
            raise MisconfigurationException(f"ConversationLogger(console=…) must be true or false, found {console!r}")
        self.console = console

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """Says at once that there is nowhere to write."""
        if loop.run_dir is None and not self.console:
            raise MisconfigurationException(
                "ConversationLogger has nowhere to write: give the loop a run directory, or set console=true"
            )

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        """Writes the samples of this iteration."""
        if not loop.is_main:
            return
        iteration = loop.progress.iteration
        shown = loop.conversations[: self.conversations]
        text = as_markdown(
            shown, title=f"Iteration {iteration}: {len(shown)} of {len(loop.conversations)} conversations"
        )
        if loop.run_dir is not None:
            write_text_atomically(Path(loop.run_dir.path) / "samples" / f"iteration-{iteration:03d}.md", text)
        if self.console:
            # Not through a rich console: print goes above a live progress display, whoever shows it.
            print(text, file=sys.stderr)


def as_markdown(conversations: Sequence[Conversation], title: str) -> str:
    """The conversations as one Markdown document."""
    parts = [f"# {title}"]
    for number, conversation in enumerate(conversations, start=1):
        outcome = "unknown" if conversation.outcome is None else f"{conversation.outcome:g}"
        facts = [f"outcome {outcome}", f"{len(conversation.turns)} turns"]
        if conversation.seed is not None:
            facts.append(f"seed {conversation.seed}")
        if conversation.policy_version is not None:
            facts.append(f"policy {_escaped(conversation.policy_version)}")
        parts.append(f"## {number}. {_escaped(conversation.id) or 'unnamed'}")
        parts.append(", ".join(facts))
        if conversation.system:
            parts.append("**System**\n\n" + _quoted(conversation.system))
        for turn in conversation.turns:
            parts.extend(_turn_parts(turn))
        if conversation.closing:
            parts.append("**Customer**\n\n" + _quoted(conversation.closing))
    return "\n\n".join(parts) + "\n"


def _turn_parts(turn: Turn) -> list[str]:
    parts = []
    if turn.customer:
        parts.append("**Customer**\n\n" + _quoted(turn.customer))
    reward = f", reward {turn.reward:g}" if turn.reward else ""
    if turn.suggestion is not None and turn.suggestion.text != turn.message:
        parts.append("**Agent's suggestion**, not sent as it is\n\n" + _quoted(turn.suggestion.text))
    parts.append(f"**Agent** ({turn.disposition}{reward})\n\n" + _quoted(turn.message))
    return parts


def _quoted(text: str) -> str:
    if not text.strip():
        return "> *(empty)*"
    return "\n".join(f"> {_escaped(line)}".rstrip() for line in text.splitlines())


def _escaped(text: str) -> str:
    """The text as it is, when rendered: a model that writes markup or control characters must not change the page."""
    # Imported logs may hold lone surrogates, which UTF-8 cannot write; they are shown as \udc80.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    text = "".join("�" if unicodedata.category(c) == "Cc" and c != "\t" else c for c in text)
    text = re.sub(r"([\\`*_<\[])", r"\\\1", text)
    return re.sub(r"^(\s*)([#>+=|~-])", r"\1\\\2", text)
