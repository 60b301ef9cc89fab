"""Files of conversations as a sequence that stays on the disk: for logs larger than the memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import numbered_conversations, parse_line
from lightning_iterppo.data.views import Lazy, View
from lightning_iterppo.errors import LogFormatError


class ConversationFile(Lazy[Conversation]):
    """The conversations of one file or several, each read when it is asked for and kept by nobody.

    Making it goes through the files once, so that every broken line is found now, and keeps some twenty bytes a
    conversation: where it begins, how many turns it has, and whether its outcome is known. A slice is a `View`. The
    files must stay as they are for as long as it is used. It can be pickled.

    Args:
        paths: the files, one JSON object a line, our own form or the ``chat`` form.

    Raises:
        LogFormatError: a line is not a conversation, with its number; or a file is not there, or holds none.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        files, numbers, offsets = array("i"), array("q"), array("q")
        turns, known = array("i"), array("b")
        for place, path in enumerate(self.paths):
            before = len(offsets)
            for number, offset, conversation in numbered_conversations(path):
                files.append(place)
                numbers.append(number)
                offsets.append(offset)
                turns.append(len(conversation.turns))
                known.append(conversation.outcome is not None)
            if len(offsets) == before:
                raise LogFormatError(path, 0, "the file holds no conversation")
        self._files, self._numbers, self._offsets = files, numbers, offsets
        #: Turns of each conversation.
        self.turns: NDArray[np.int32] = np.array(turns, dtype=np.int32)
        #: Whether the outcome of each is known.
        self.known: NDArray[np.bool_] = np.array(known, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._offsets)

    def _item(self, index: int) -> Conversation:
        path, number = self.paths[self._files[index]], self._numbers[index]
        with open(path, "rb") as file:
            file.seek(self._offsets[index])
            found = parse_line(path, number, file.readline())
        if found is None:
            raise LogFormatError(path, number, "the file has changed since it was first read")
        return found


@runtime_checkable
class Surveyed(Protocol):
    """Conversations of which something is known without reading them: a `ConversationFile`, `StoredConversations`."""

    @property
    def turns(self) -> NDArray[np.int32]:
        """Turns of each conversation."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the outcome of each is known."""


def outcomes_known(conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
    """Whether the outcome of each conversation is known, without reading those that are `Surveyed`."""
    if isinstance(conversations, View):
        return outcomes_known(conversations.items)[conversations.rows]
    if isinstance(conversations, Surveyed):
        return conversations.known
    return np.array([conversation.outcome is not None for conversation in conversations], dtype=np.bool_)


def turn_counts(conversations: Sequence[Conversation]) -> NDArray[np.int32]:
    """Turns of each conversation, without reading those that are `Surveyed`."""
    if isinstance(conversations, View):
        return turn_counts(conversations.items)[conversations.rows]
    if isinstance(conversations, Surveyed):
        return conversations.turns
    return np.array([len(conversation.turns) for conversation in conversations], dtype=np.int32)
