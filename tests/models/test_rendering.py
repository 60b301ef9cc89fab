"""Conversations as tokens: what was sampled stays, what was sent is the history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from lightning_iterppo.conversation import Conversation, Disposition, Message, Suggestion, Turn
from lightning_iterppo.models.rendering import PLAIN_TEMPLATE, ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer
from lightning_iterppo.models.tree import ROOT

WORDS = ["hello", "hat", "red", "blue", "?", "yes", "no"]


def a_renderer(**changes: Any) -> ChatRenderer:
    tokenizer = make_scratch_tokenizer(WORDS)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return ChatRenderer(tokenizer)


def two_turns(
    suggestion: Suggestion | None = None, disposition: Disposition = "unassisted", sent: str = "red hat ?"
) -> Conversation:
    return Conversation(
        "c",
        (Turn("hello", sent, suggestion, disposition), Turn("no", "blue hat ?", reward=1.0)),
        closing="yes",
        outcome=1.0,
    )


def test_an_ordinary_log_is_the_chat_template_token_for_token() -> None:
    renderer = a_renderer()
    rendered = renderer.render(two_turns())
    assert rendered.tree.chain
    whole = renderer.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "red hat ?"},
            {"role": "user", "content": "no"},
            {"role": "assistant", "content": "blue hat ?"},
        ]
    )["input_ids"]
    assert rendered.tree.path(rendered.actions[-1]) == whole


@pytest.mark.parametrize("spaced", [True, False])
def test_a_message_ends_once(spaced: bool) -> None:
    """Templates put a space before the end token or none; either way it comes once."""
    renderer = a_renderer()
    if not spaced:
        renderer.tokenizer.chat_template = renderer.tokenizer.chat_template.replace("' <end> '", "'<end> '")
    chat = [Message("customer", "hello"), Message("agent", "red hat ?"), Message("customer", "no")]
    names = ["<end>", "<customer>", "no", "<end>", "<agent>"]
    following = renderer.tokenizer.convert_tokens_to_ids(names)
    assert renderer.continuation(None, chat, ended=False) == following
    assert renderer.continuation(None, chat, ended=True) == following[1:]


def test_sampled_tokens_are_kept_verbatim() -> None:
    renderer = a_renderer()
    # Encoding the text again would give neither the second unknown word nor the customer's token in the middle.
    drawn = (7, 5, 3, 8, renderer.stop_token_id)
    text = renderer.decode(drawn)
    assert renderer.response_ids(text) != list(drawn)
    rendered = renderer.render(two_turns(Suggestion(text, drawn), "accepted", sent=text))
    assert rendered.tree.segments[rendered.actions[0]].token_ids == drawn
    assert rendered.tree.path(rendered.states[1])[: 4 + len(drawn)] == rendered.tree.path(rendered.actions[0])


def test_a_suggestion_without_tokens_is_encoded() -> None:
    renderer = a_renderer()
    rendered = renderer.render(two_turns(Suggestion("red hat ?"), "accepted"))
    assert list(rendered.tree.segments[rendered.actions[0]].token_ids) == renderer.response_ids("red hat ?")


@pytest.mark.parametrize("finished", [True, False])
def test_the_next_state_goes_on_from_the_response(finished: bool) -> None:
    renderer = a_renderer()
    drawn = (*renderer.encode("red hat"), *([renderer.stop_token_id] if finished else []))
    rendered = renderer.render(two_turns(Suggestion("red hat", drawn), "accepted", sent="red hat"))
    path = rendered.tree.path(rendered.states[1])
    history = [Message("customer", "hello"), Message("agent", "red hat"), Message("customer", "no")]
    # A response that was cut gets its end token in the history, not in the action.
    assert path == renderer.encode(renderer.prompt_text(None, history))
    assert rendered.tree.segments[rendered.actions[0]].token_ids == drawn
    assert path[: len(rendered.tree.path(rendered.actions[0]))] == rendered.tree.path(rendered.actions[0])


@pytest.mark.parametrize("disposition", ["edited", "rejected"])
def test_a_suggestion_that_was_not_sent_is_a_branch(disposition: Disposition) -> None:
    renderer = a_renderer()
    suggested = Suggestion("blue", (*renderer.encode("blue"), renderer.stop_token_id))
    rendered = renderer.render(two_turns(suggested, disposition, sent="red hat ?"))
    tree = rendered.tree
    # The action is the suggestion, and nothing goes on from it.
    assert tree.segments[rendered.actions[0]].token_ids == suggested.token_ids
    assert all(segment.parent != rendered.actions[0] for segment in tree.segments)
    # The next state's history holds what was sent, which is no action.
    assert renderer.tokenizer.decode(tree.path(rendered.states[1])) == (
        "<customer> hello <end> <agent> red hat ? <end> <customer> no <end> <agent>"
    )
    sent = tree.segments[rendered.states[1]].parent
    assert not tree.segments[sent].action
    assert tree.segments[sent].parent == rendered.states[0]
    assert len(tree.actions) == 2


def test_states_are_the_prompts_that_the_agent_would_read() -> None:
    renderer = a_renderer()
    conversation = two_turns()
    rendered = renderer.render(conversation)
    for turn, state in enumerate(rendered.states):
        prompt = renderer.prompt_text(None, conversation.messages[: 2 * turn + 1])
        assert rendered.tree.path(state) == renderer.encode(prompt)
    assert rendered.tree.actions == rendered.actions


def test_the_system_message_of_the_conversation_comes_before_the_renderers() -> None:
    renderer = ChatRenderer(make_scratch_tokenizer(WORDS), system="red")
    assert renderer.prompt_text(None, []).startswith("<system> red")
    assert renderer.prompt_text("blue", []).startswith("<system> blue")
    own = renderer.render(replace(two_turns(), system="blue"))
    assert renderer.tokenizer.decode(own.tree.path(own.states[0])).startswith("<system> blue <end> <customer> hello")
    assert renderer.render(two_turns()).tree.path(0)[1] == renderer.encode("red")[0]


def test_an_agent_that_opens_the_conversation() -> None:
    renderer = a_renderer()
    opened = Conversation("c", (Turn("", "hello"), Turn("red", "yes")), outcome=0.0)
    rendered = renderer.render(opened)
    assert renderer.tokenizer.decode(rendered.tree.path(rendered.actions[1])) == (
        "<agent> hello <end> <customer> red <end> <agent> yes <end>"
    )


def test_without_a_chat_template_there_are_plain_lines() -> None:
    renderer = a_renderer(chat_template=None)
    history = [Message("customer", "hello"), Message("agent", "red"), Message("customer", "no")]
    assert renderer.prompt_text("blue", history) == "blue\ncustomer: hello\nagent: red<end>\ncustomer: no\nagent: "
    more = renderer.continuation(None, history, ended=True)
    assert more == renderer.encode("\ncustomer: no\nagent: ")
    rendered = renderer.render(two_turns())
    assert rendered.tree.chain
    assert rendered.tree.path(rendered.states[1]) == renderer.encode(
        "customer: hello\nagent: red hat ? <end>\ncustomer: no\nagent: "
    )


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_plain_lines_come_after_the_token_that_begins_a_text(template: str | None) -> None:
    tokenizer = make_scratch_tokenizer(["hat", "customer:", "agent:"])
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    history = [Message("customer", "hat")]
    assert "<begin>" not in ChatRenderer(tokenizer).prompt_text(None, history)  # this tokenizer puts none
    first = int(tokenizer.convert_tokens_to_ids("<begin>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", first)]
    )
    renderer = ChatRenderer(tokenizer)
    begins = renderer.prompt_text(None, history).startswith("<begin>")
    assert begins == (template is None)  # a chat template says for itself how a text begins
    ids = renderer.encode(renderer.prompt_text(None, history))
    assert ids.count(first) == int(begins)
    assert renderer.template.endswith(template or PLAIN_TEMPLATE)


def test_a_template_that_rewrites_the_past_begins_a_new_root() -> None:
    template = "{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}"
    renderer = a_renderer(chat_template=template)
    rendered = renderer.render(two_turns())
    assert [rendered.tree.segments[state].parent for state in rendered.states] == [ROOT, ROOT]
    whole = renderer.prompt_text(None, two_turns().messages[:3])
    assert rendered.tree.path(rendered.states[1]) == renderer.encode(whole)


def test_decoding_leaves_out_the_end_and_special_tokens() -> None:
    renderer = a_renderer()
    ids = renderer.encode("red hat ?")
    assert renderer.decode([*ids, renderer.stop_token_id]) == "red hat ?"
    assert renderer.decode([*ids[:2], 3, ids[2]]) == "red hat ?"
    assert renderer.decode([renderer.stop_token_id]) == ""


def test_an_empty_response_keeps_its_end_token() -> None:
    renderer = a_renderer()
    end = renderer.stop_token_id
    rendered = renderer.render(two_turns(Suggestion("", (end,)), "accepted", sent=""))
    assert rendered.tree.segments[rendered.actions[0]].token_ids == (end,)
    assert renderer.tokenizer.decode(rendered.tree.path(rendered.states[1])) == (
        "<customer> hello <end> <agent> <end> <customer> no <end> <agent>"
    )


def test_a_tokenizer_that_cannot_end_a_response() -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        ChatRenderer(tokenizer)


# -- other people's templates ------------------------------------------------------------------------------------------

#: As Gemma 2's: no system role, the customer begins, and a message ends with another token than a text.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ ('<customer>' if m.role == 'user' else '<agent>') + m.content + '<over>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<agent>' }}{% endif %}"
)


def strict() -> ChatRenderer:
    tokenizer = make_scratch_tokenizer(WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<over>"]})
    tokenizer.chat_template = STRICT
    return ChatRenderer(tokenizer)


def names(renderer: ChatRenderer, ids: Any) -> list[str]:
    return list(renderer.tokenizer.convert_ids_to_tokens(list(ids)))


def test_a_message_ends_as_the_template_ends_it() -> None:
    renderer = strict()
    assert names(renderer, [renderer.stop_token_id]) == ["<over>"]
    assert renderer.stop_token_id != renderer.tokenizer.eos_token_id
    rendered = renderer.render(two_turns())
    assert names(renderer, rendered.tree.path(rendered.actions[-1])) == [
        *("<customer>", "hello", "<over>", "<agent>", "red", "hat", "?", "<over>"),
        *("<customer>", "no", "<over>", "<agent>", "blue", "hat", "?", "<over>"),
    ]
    assert renderer.decode(renderer.response_ids("red hat")) == "red hat"


def test_where_a_template_has_no_system_role_the_customer_says_it() -> None:
    renderer = strict()
    text = renderer.prompt_text(
        "red", [Message("customer", "hello"), Message("agent", "yes"), Message("customer", "no")]
    )
    assert text == "<customer>red\n\nhello<over><agent>yes<over><customer>no<over><agent>"
    assert renderer.prompt_text("red", []) == "<customer>red<over><agent>"
    rendered = renderer.render(replace(two_turns(), system="blue"))
    assert rendered.tree.chain and names(renderer, rendered.tree.path(rendered.states[0]))[:3] == [
        *("<customer>", "blue", "hello"),
    ]


def test_where_the_customer_has_to_begin_it_begins_with_nothing() -> None:
    renderer = strict()
    assert renderer.prompt_text(None, []) == "<customer><over><agent>"
    talk = [Message("agent", "yes"), Message("customer", "no")]
    assert renderer.prompt_text(None, talk) == "<customer><over><agent>yes<over><customer>no<over><agent>"
    assert renderer.prompt_text("red", talk) == "<customer>red<over><agent>yes<over><customer>no<over><agent>"


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }} {% endfor %}"])
def test_where_a_template_ends_no_message_the_end_of_text_does(template: str | None) -> None:
    tokenizer = make_scratch_tokenizer(WORDS)
    tokenizer.chat_template = template
    assert ChatRenderer(tokenizer).stop_token_id == tokenizer.eos_token_id
