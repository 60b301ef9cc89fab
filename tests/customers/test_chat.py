"""A language model behind a server as the customer, against a small server that the test itself starts."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from json_server import JsonServer

from lightning_iterppo.collection import collect
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation, Message
from lightning_iterppo.customers import AsyncCustomer
from lightning_iterppo.customers.chat import ChatClient, ChatCustomer, JudgeOutcome, SaidOutcome, ToolOutcome
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer
from lightning_iterppo.targets import instantiate
from lightning_iterppo.testing import check_customer

pytest.importorskip("openai")
Say = Callable[[dict[str, Any]], Any]


class Server(JsonServer):
    """Speaks the chat protocol; ``say`` makes an answer of a request: text, a message, or a status to fail with."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.say: Say = lambda request: "hello"
        self.together = 1  # how many requests wait for each other
        self._all = threading.Condition()
        self.waiting = self.most = 0
        super().__init__(self._answer)

    def _answer(self, path: str, request: Any) -> tuple[int, Any]:
        self._meet()
        self.asked.append({"path": path, **request})
        said = self.say(request)
        return (said, {"error": {"message": "busy"}}) if isinstance(said, int) else (200, _form(said))

    def _meet(self) -> None:
        with self._all:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            self._all.notify_all()
            self._all.wait_for(lambda: self.most >= self.together, timeout=10)
            self.waiting -= 1


def _form(said: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": said} if isinstance(said, str) else {"role": "assistant", **said}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "small",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def talk_with() -> Callable[..., list[Conversation]]:
    """Conversations with an agent that always says ``hm``."""
    renderer = ChatRenderer(make_scratch_tokenizer(["hm"]))
    said = Response((*renderer.encode("hm"), renderer.stop_token_id), (-0.5, -0.5), True)

    class Engine:
        generated_tokens = 0

        def generate(
            self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Any = None
        ) -> list[Response]:
            return [said] * len(prompts)

    return lambda make, seeds, **more: collect(
        make,
        seeds,
        engine=Engine(),
        renderer=renderer,
        sampling=Sampling(),
        policy_version="0",
        prefix="run",
        **more,
    )


def client(server: Server, **more: Any) -> ChatClient:
    return ChatClient("small", base_url=server.url, **{"retries": 0, **more})


def buyer(request: dict[str, Any]) -> str:
    """Buys from who offers boots."""
    last = request["messages"][-1]["content"]
    if "boots" in last:
        return "I take them! [BUY]"
    return "Bye. [LEAVE]" if "nothing" in last else f"I am looking for something, seed {request['seed']}."


SAID = SaidOutcome(won=r"\[BUY\]", lost=r"\[LEAVE\]")
PERSONA = {"name": ["Ann", "Ben"], "need": ["boots", "a tent"]}


def customer(server: Server, **more: Any) -> ChatCustomer:
    given = {"system": "You are {name} and need {need}.", "outcome": SAID, "persona": PERSONA, "max_turns": 3, **more}
    return ChatCustomer(given.pop("client", client(server)), **given)


# -- the customer ----------------------------------------------------------------------------------------------------


def test_it_keeps_what_a_customer_promises(server: Server) -> None:
    server.say = buyer
    found = check_customer(lambda: customer(server), seeds=range(3), messages=["boots?", "a", "nothing"])
    assert [[t.message for t in c.turns] for c in found] == [["boots?"], ["a", "nothing"], ["nothing"]]
    assert [(c.closing, c.outcome) for c in found] == [("I take them!", 1.0), ("Bye.", 0.0), ("Bye.", 0.0)]
    assert isinstance(customer(server), AsyncCustomer)


def test_the_model_is_told_who_it_is_and_hears_the_agent_as_the_user(server: Server) -> None:
    server.say = buyer
    (made,) = check_customer(lambda: customer(server, agent="Sell {need}."), seeds=[1], messages=["hm"])
    last = server.asked[2]
    (told, begin, *talk) = last["messages"]
    everybody = {f"You are {name} and need {need}." for name in PERSONA["name"] for need in PERSONA["need"]}
    assert told["role"] == "system" and told["content"] in everybody
    assert begin["role"] == "user" and "begins" in begin["content"]
    assert [(m["role"], m["content"][:12]) for m in talk] == [
        ("assistant", "I am looking"),
        ("user", "hm"),
        ("assistant", "I am looking"),
        ("user", "hm"),
    ]
    assert (last["path"], last["model"], last["max_tokens"]) == ("/v1/chat/completions", "small", 200)
    # The agent is told of the same draw.
    assert made.system is not None and told["content"].endswith(made.system.replace("Sell", "need"))


def test_every_conversation_draws_its_persona_by_its_seed(server: Server) -> None:
    seen = set()
    for seed in range(20):
        check_customer(lambda: customer(server), seeds=[seed], messages=["hm"])
        seen.add(server.asked[-1]["messages"][0]["content"])
    assert len(seen) == 4


def test_openings_may_be_given(server: Server) -> None:
    made = check_customer(lambda: customer(server, openings=["{name} here."]), seeds=[1], messages=["hm"])
    assert made[0].turns[0].customer in ("Ann here.", "Ben here.")
    assert [m["role"] for m in server.asked[0]["messages"]] == ["system", "user", "assistant", "user"]


def test_a_batch_waits_for_the_server_together_and_not_more_than_it_may(server: Server, talk_with: Any) -> None:
    server.say, server.together = buyer, 4
    found = talk_with(lambda: customer(server), range(6), timeout=20)
    assert len(found) == 6 and server.most >= 4
    server.most, server.together = 0, 1
    talk_with(lambda: customer(server, client=client(server, concurrency=1)), range(6))
    assert server.most == 1


# -- how it ends -----------------------------------------------------------------------------------------------------


def called(**given: Any) -> dict[str, Any]:
    function = {"name": "end_conversation", "arguments": json.dumps(given)}
    return {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


@pytest.mark.parametrize("bought", [True, False])
def test_a_tool_ends_it(server: Server, bought: bool) -> None:
    server.say = lambda request: called(bought=bought) if "tools" in request else "hello"
    (made,) = check_customer(lambda: customer(server, outcome=ToolOutcome()), seeds=[0], messages=["hm"])
    assert (len(made.turns), made.closing, made.outcome) == (1, "", float(bought))
    function = server.asked[1]["tools"][0]["function"]
    assert function["name"] == "end_conversation" and function["parameters"]["required"] == ["bought"]


def test_a_judge_reads_the_whole_conversation(server: Server) -> None:
    def say(request: dict[str, Any]) -> str:
        if "Rate it" in request["messages"][0]["content"]:
            return 'It went well. {"score": 4}'
        return "hello"

    server.say = say
    outcome = JudgeOutcome(client(server), "Rate it.", low=1, high=5)
    (made,) = check_customer(lambda: customer(server, outcome=outcome), seeds=[0], messages=["hm", "so"])
    assert (len(made.turns), made.outcome) == (3, 0.75)
    judged = server.asked[-1]["messages"]
    assert "a number from 1 to 5" in judged[0]["content"]
    assert judged[1]["content"].splitlines() == [
        *("customer: hello", "agent: hm", "customer: hello", "agent: so", "customer: hello", "agent: hm"),
        "customer: hello",
    ]


@pytest.mark.parametrize(
    ("outcome", "said", "error"),
    [
        (ToolOutcome(), called(price=3), "bought must be true or false"),
        (ToolOutcome(name="stop"), called(bought=True), "the model called end_conversation, which there is not"),
        ("judge", "very good", "the judge gave no score: 'very good'"),
        ("judge", '{"score": 7}', "the judge gave 7, which is not from 0 to 1"),
        (SAID, "", "the model said nothing"),
    ],
)
def test_what_is_no_answer_costs_the_conversation(server: Server, outcome: Any, said: Any, error: str) -> None:
    server.say = lambda request: said
    given = JudgeOutcome(client(server), "Rate it.", ends="good") if outcome == "judge" else outcome
    with pytest.raises(CustomerError, match=error):
        check_customer(lambda: customer(server, outcome=given, openings=["hi"]), seeds=[0], messages=["good"])


# -- the client ------------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai._base_client as base

    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.01)
    failures = iter([503, 429])
    server.say = lambda request: next(failures, "hello [LEAVE]")
    made = check_customer(
        lambda: customer(server, client=client(server, retries=2), openings=["hi"]), seeds=[0], messages=["hm"]
    )
    assert made[0].closing == "hello"


def test_one_that_stays_busy_costs_the_conversation(server: Server) -> None:
    server.say = lambda request: 503
    with pytest.raises(CustomerError, match=r"reset raised InternalServerError.*busy"):
        check_customer(lambda: customer(server), seeds=[0])


def test_the_cache_answers_what_was_asked_before(server: Server, tmp_path: Path) -> None:
    server.say = buyer

    def make() -> ChatCustomer:
        return customer(server, client=client(server, cache=str(tmp_path / "cache")))

    first = check_customer(make, seeds=[1], messages=["hm", "boots"])
    asked = len(server.asked)
    assert asked == 2  # each request once, though the kit had the conversation four times
    assert check_customer(make, seeds=[1], messages=["hm", "boots"]) == first
    assert len(server.asked) == asked
    check_customer(make, seeds=[2], messages=["hm", "boots"])
    assert len(server.asked) > asked  # another conversation is another question
    other = customer(server, client=client(server, cache=str(tmp_path / "cache"), temperature=0.5))
    asked = len(server.asked)
    check_customer(lambda: other, seeds=[2], messages=["hm", "boots"])
    assert len(server.asked) > asked


def test_what_it_costs_is_counted(server: Server, talk_with: Any, tmp_path: Path) -> None:
    server.say = buyer
    given = client(server, cache=str(tmp_path), price_in=2.0, price_out=10.0)
    costs: list[dict[str, float]] = []
    talk_with(lambda: customer(server, client=given), [0, 1], on_usage=costs.append)
    # An opening and three turns each.
    assert (
        costs
        == [{"requests": 4, "cached": 0, "prompt_tokens": 400, "completion_tokens": 40, "cost": pytest.approx(0.0012)}]
        * 2
    )
    talk_with(lambda: customer(server, client=given), [0], on_usage=costs.append)
    assert costs[-1] == {"requests": 4, "cached": 4, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}


def test_a_key_is_only_needed_for_openais_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment has no OPENAI_API_KEY"):
        ChatClient("gpt")
    ChatClient("gpt", base_url="http://localhost:1/v1")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"system": "You are {who}."}, r"customer\.system has \{who\}, but customer\.persona has no who"),
        ({"agent": "Sell {what}."}, r"customer\.agent has \{what\}"),
        ({"openings": ["{x}"]}, r"customer\.openings has \{x\}"),
        ({"system": "a {"}, "a brace of the text itself is written twice"),
        ({"persona": {**PERSONA, "need": []}}, r"customer\.persona\.need has nothing to draw from"),
        ({"max_turns": 0}, "max_turns must be at least 1"),
    ],
)
def test_a_wrong_template_is_found_before_any_work(server: Server, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        customer(server, **more)


def test_wrong_outcomes_are_found_before_any_work(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"customer\.outcome\.won '\[' is no regular expression"):
        SaidOutcome(won="[")
    with pytest.raises(ConfigError, match="low 1 must be below high 1"):
        JudgeOutcome(client(server), "", low=1)


def test_the_recipes_customer_is_one_and_can_go_to_other_processes(server: Server) -> None:
    config = compose("shop", ["customer=chat", f"customer.client.base_url={server.url}", "logs=none"])
    made = pickle.loads(pickle.dumps(instantiate(config.customer, "customer")))
    assert made.client.base_url == server.url and asdict(made.usage)["requests"] == 0
    server.say = lambda request: "I take it [BUY]" if request["messages"][-1]["role"] == "user" else "?"
    found = check_customer(lambda: instantiate(config.customer, "customer"), seeds=[3], messages=["hm"])
    assert found[0].outcome == 1.0 and found[0].system is not None
    assert "{" not in server.asked[0]["messages"][0]["content"]
    assert Message("agent", "hm") in found[0].messages
