"""Conversations as tokens: chat templates, stop tokens, and the token tree of a conversation.

Tokens that a policy sampled are kept as they are: decoding and encoding again may give other tokens, and the
log-probability of an action is about the tokens that were drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_iterppo.conversation import Conversation, Message, Suggestion
from lightning_iterppo.models.tree import ROOT, TokenTree
from lightning_iterppo.models.window import Cuts, Window

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

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, so that a response could never end.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, system: str | None = None, window: Window | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token; set one: it ends every response")
        self.tokenizer = tokenizer
        self.system = system
        self.window = window
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
        """What the model reads before the agent's next message."""
        return self._prompt_text(system, tuple(messages))

    def _make_prompt_text(self, system: str | None, messages: tuple[Message, ...]) -> str:
        if dropped := self._dropped(system, messages):
            assert self.window is not None
            first = self.window.first
            messages = (*messages[:first], *messages[first + dropped :])
        return self._make_text(system, messages)

    def _dropped(self, system: str | None, messages: Sequence[Message]) -> int:
        """How many messages after the first ones the window leaves out; an estimate of tokens that is not too low."""
        if self.window is None:
            return 0
        one = (Message("customer", "a"),)
        if self._around is None:  # the template's tokens around a message
            three = (*one, Message("agent", "a"), *one)
            less, more = (len(self.encode(self._make_text(None, each))) for each in (one, three))
            self._around = -(-(more - less) // 2) - len(self.encode("a"))
        fixed = len(self.encode(self._make_text(system, one))) - len(self.encode("a")) - self._around
        counts = [len(self.encode(m.content.strip())) + self._around for m in messages]
        return self.window.dropped(counts, [m.role for m in messages], fixed)

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
        """The token tree of a conversation, every turn's state and action marked."""
        tree = TokenTree()
        history: list[Message] = []
        states: list[int] = []
        actions: list[int] = []
        sent: int | None = None  # the segment of the agent's last message, when the next state can follow it
        for turn in conversation.turns:
            if turn.customer:
                history.append(Message("customer", turn.customer))
            if self.window is not None:
                self.cuts.count(self._dropped(conversation.system, history))
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
            history.append(Message("agent", turn.message))
        return RenderedConversation(tree, states, actions)


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Plain lines, after the token that begins every text where the tokenizer puts one: Gemma fails without."""
    first = tokenizer.encode("a", add_special_tokens=True)[:1]
    begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
