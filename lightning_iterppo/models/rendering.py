"""Conversations as tokens: chat templates, stop tokens, and the token tree of a conversation.

Tokens that a policy sampled are kept as they are: decoding and encoding again may give other tokens, and the
log-probability of an action is about the tokens that were drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_iterppo.conversation import Conversation, Message, Suggestion
from lightning_iterppo.errors import ConfigError, LogDataError
from lightning_iterppo.models.tree import ROOT, TokenTree
from lightning_iterppo.models.window import NARROWEST, Cuts, Window

# For models without a chat template: plain lines, a message of the agent ends with the model's own end token.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}agent: {{ m.content }}{{ eos_token }}\n"
    "{% elif m.role == 'user' %}customer: {{ m.content }}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}agent: {% endif %}"
)
_OPENING = "@@opening@@"  # stands for any message
# Prompts and pieces of text that are kept: conversations are rendered again in every phase.
_KEPT = 16384
_KEPT_IN_PASSING = 64
_CHAT_NAMES = {"customer": "user", "agent": "assistant"}


def longest_text(config: Any) -> int | None:
    """How many tokens a model reads at most, by its configuration; None where that names no limit."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """A conversation as a tree.

    Args:
        tree: the history as the trunk; a suggestion that was not sent as it was is a branch.
        states: for each turn, the segment at whose end the agent speaks.
        actions: for each turn, the segment of the action a_t: the suggestion, or the message of an ordinary log.
    """

    tree: TokenTree
    states: list[int]
    actions: list[int]


class ChatRenderer:
    """Turns conversations into token trees with a tokenizer's chat template.

    Args:
        tokenizer: any tokenizer of transformers; one without a chat template gets plain "customer: / agent:" lines.
        system: the system message of conversations that bring none; None leaves it to the template.
        window: how much of a long history is read; None reads all of it. ``cuts`` counts how often it had to cut the
            histories of rendered conversations.
        limit: how many tokens the model reads at most (`longest_text`); None refuses no text.
        room: how many of these a prompt leaves to the response.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, so that a response could never end.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        window: Window | None = None,
        *,
        limit: int | None = None,
        room: int = 0,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token; set one: it ends every response")
        self.tokenizer = tokenizer
        self.system = system
        self.window = window
        self.limit = limit
        self.room = room
        self.cuts = Cuts()
        self._around: int | None = None
        self._template = None if tokenizer.chat_template else _plain_template(tokenizer)
        self._takes_system = self._takes([{"role": "system", "content": "a"}, {"role": "user", "content": "a"}])
        self._agent_may_open = self._takes([{"role": "assistant", "content": "a"}])
        self._remember(_KEPT)
        self.stop_token_id = self._end_of_message()
        self.pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_token_id)

    @property
    def template(self) -> str:
        """The chat template in use."""
        return str(self._template or self.tokenizer.chat_template)

    def _takes(self, chat: list[dict[str, str]]) -> bool:
        """Whether the template takes such a chat; some refuse system messages, or want the customer to begin."""
        try:
            self._apply_template(chat, add_generation_prompt=False)
        except TemplateError:
            return False
        return True

    def _end_of_message(self) -> int:
        """The token with which the template ends a message of the agent, which may not be the model's end of text."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _OPENING}]
        after = self._apply_template(chat, add_generation_prompt=False).partition(_OPENING)[2].lstrip()
        first = self.encode(after)[:1]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return first[0] if first and first[0] in special else int(cast(int, self.tokenizer.eos_token_id))

    def _remember(self, count: int) -> None:
        self._prompt_text = lru_cache(maxsize=count)(self._make_prompt_text)
        self._encode = lru_cache(maxsize=count)(self._make_ids)

    def forgetful(self) -> ChatRenderer:
        """The same renderer for conversations that come once: it keeps no more prompts than one of them shares."""
        other = copy.copy(self)
        other._remember(_KEPT_IN_PASSING)
        return other

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text, special tokens recognised but none added."""
        return list(self._encode(text))

    def _make_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def response_ids(self, text: str) -> list[int]:
        """Tokens of a whole response: the text and the end token."""
        return [*self.encode(text.strip()), self.stop_token_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a response, without its end token."""
        ids = [int(token) for token in token_ids]
        if ids and ids[-1] == self.stop_token_id:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def prompt_text(self, system: str | None, messages: Sequence[Message]) -> str:
        """What the model reads before the agent's next message.

        Raises:
            ConfigError: the model cannot read as much, or its chat template refuses the history.
        """
        return self._prompt_text(system, tuple(messages))

    def _make_prompt_text(self, system: str | None, messages: tuple[Message, ...]) -> str:
        read = messages
        if self.window is not None:
            counts, fixed = self._counts(system, messages)
            start, stop = self.window.gap(counts, [m.role for m in messages], fixed)
            read = (*messages[:start], *messages[stop:])
        try:
            text = self._make_text(system, read)
        except TemplateError as error:
            raise ConfigError(
                f"the model's chat template refuses a history of {len(messages)} messages: {error}"
            ) from error
        # A token is at least a byte: most texts need not be encoded to know that they are short.
        if self.limit is not None and len(text.encode()) > self.limit - self.room:
            self._need_fit(f"a history of {len(messages)} messages", len(self._make_ids(text)), self.room)
        return text

    def _need_fit(self, what: str, tokens: int, response: int) -> None:
        """Refuses a history that is too long with the response to it."""
        if self.limit is None or tokens + response <= self.limit:
            return
        left = self.limit - response
        if left < NARROWEST:
            advice = "leave it out"
        elif self.window is None or self.window.tokens > left:
            advice = f"have it cut, with model.window={left}"
        else:
            advice = "what a window never cuts is too long: lower model.window_first, or leave it out"
        more = f", {tokens + response} with the response" if response else ""
        raise ConfigError(f"{what} has {tokens} tokens{more}, and the model reads {self.limit}: {advice}")

    def _counts(self, system: str | None, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Tokens of every message and of all else in their prompt; an estimate that is not too low."""
        one = (Message("customer", "a"),)
        if self._around is None:  # the template's tokens around a message
            three = (*one, Message("agent", "a"), *one)
            less, more = (len(self.encode(self._make_text(None, each))) for each in (one, three))
            self._around = -(-(more - less) // 2) - len(self.encode("a"))
        fixed = len(self.encode(self._make_text(system, one))) - len(self.encode("a")) - self._around
        return [len(self.encode(m.content.strip())) + self._around for m in messages], fixed

    def count_cuts(self, conversation: Conversation) -> None:
        """Counts in ``cuts`` which histories of a conversation do not fit the window, as `render` does."""
        if self.window is not None:
            for history in _histories(conversation):
                self.cuts.count(self.window.fits(*self._counts(conversation.system, history)))

    def _make_text(self, system: str | None, messages: tuple[Message, ...]) -> str:
        told = system if system is not None else self.system
        chat = [{"role": _CHAT_NAMES[m.role], "content": m.content.strip()} for m in messages]
        if not self._agent_may_open and (not chat or chat[0]["role"] == "assistant"):
            chat.insert(0, {"role": "user", "content": ""})  # for templates in which the customer has to begin
        if told is not None and self._takes_system:
            chat.insert(0, {"role": "system", "content": told})
        elif told is not None:
            # Templates without a system role have it said by the customer, as those of Gemma do by themselves.
            if not chat or chat[0]["role"] == "assistant":
                chat.insert(0, {"role": "user", "content": ""})
            chat[0] = {"role": "user", "content": f"{told}\n\n{chat[0]['content']}".strip()}
        if chat:
            return self._apply_template(chat, add_generation_prompt=True)
        # The agent opens the conversation. No template takes an empty one, so this is cut from one that was opened.
        opened = self._apply_template([{"role": "assistant", "content": _OPENING}], add_generation_prompt=False)
        return opened.partition(_OPENING)[0]

    def _apply_template(self, chat: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=self._template
            )
        )

    def continuation(self, system: str | None, messages: Sequence[Message], *, ended: bool) -> list[int] | None:
        """The tokens between an agent message and the next one.

        Args:
            system: the system message.
            messages: the history up to and including the customer's answer to the agent message.
            ended: whether the agent's tokens end with the end token already.

        Returns:
            The tokens that follow; None when the template rewrites what came before, so that nothing can be shared.
        """
        spoken = max(i for i, m in enumerate(messages) if m.role == "agent")
        before = self.prompt_text(system, messages[:spoken]) + messages[spoken].content.strip()
        whole = self.prompt_text(system, messages)
        if not whole.startswith(before):
            return None
        rest = whole[len(before) :]
        # Some templates put a space before the end token; it would hide it, and the message would end twice.
        end, spaced = str(self.tokenizer.convert_ids_to_tokens(self.stop_token_id)), rest.lstrip()
        after = spaced.removeprefix(end) if spaced.startswith(end) else rest
        return ([] if ended else [self.stop_token_id]) + self.encode(after)

    def question_ids(self, text: str) -> list[int]:
        """The tokens of a question that the customer asks after a message of the agent, up to where the agent answers.

        Raises:
            ValueError: the question is empty.
        """
        if not text.strip():
            raise ValueError("a question needs some text")
        said = [Message("customer", "a"), Message("agent", "a"), Message("customer", text)]
        # Where a template rewrites what came before, a message cannot follow another: the text by itself can.
        return self.continuation(None, said, ended=True) or self.encode(f"\n{text.strip()}\n")

    def suggestion_ids(self, suggestion: Suggestion | None, message: str) -> list[int]:
        """The action's tokens: as sampled where they are known, else the text encoded."""
        if suggestion is None:
            return self.response_ids(message)
        return list(suggestion.token_ids) or self.response_ids(suggestion.text)

    def render(self, conversation: Conversation) -> RenderedConversation:
        """The token tree of a conversation, every turn's state and action marked.

        Raises:
            LogDataError: the model cannot read as much, or its chat template refuses the conversation.
        """
        self.count_cuts(conversation)
        try:
            return self._render(conversation)
        except ConfigError as error:
            raise LogDataError(f"conversation {conversation.id!r}: {error}") from error

    def _render(self, conversation: Conversation) -> RenderedConversation:
        tree = TokenTree()
        states: list[int] = []
        actions: list[int] = []
        sent: int | None = None  # the segment of the agent's last message, when the next state can follow it
        for number, (turn, history) in enumerate(zip(conversation.turns, _histories(conversation), strict=True), 1):
            ids = None
            if sent is not None:
                ended = tree.segments[sent].token_ids[-1] == self.stop_token_id
                ids = self.continuation(conversation.system, history, ended=ended)
            if ids is None or sent is None:
                state = tree.add(self.encode(self.prompt_text(conversation.system, history)), ROOT)
            else:
                state = tree.add(ids, sent)
            action = tree.add(self.suggestion_ids(turn.suggestion, turn.message), state, action=True)
            if turn.disposition in ("edited", "rejected"):
                sent = tree.add(self.response_ids(turn.message), state)
            else:
                sent = action
            states.append(state)
            actions.append(action)
            said = max(len(tree.segments[each].token_ids) for each in (action, sent))
            if self.limit is not None and len(tree) > self.limit:
                self._need_fit(f"the history of turn {number}", len(tree.path(state)), said)
        return RenderedConversation(tree, states, actions)


def _histories(conversation: Conversation) -> Iterator[list[Message]]:
    """What was said before each message of the agent: one list, which grows."""
    history: list[Message] = []
    for turn in conversation.turns:
        if turn.customer:
            history.append(Message("customer", turn.customer))
        yield history
        history.append(Message("agent", turn.message))


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Plain lines, after the token that begins every text where the tokenizer puts one: Gemma fails without."""
    first = tokenizer.encode("a", add_special_tokens=True)[:1]
    begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
