"""A server in the local engine's place, against one that the test itself starts and that has weights of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from json_server import JsonServer
from transformers import AutoModelForCausalLM

from lightning_iterppo.behaviour import action_log_ratios
from lightning_iterppo.build import build_loop
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.delivery import Delivery
from lightning_iterppo.errors import ConfigError, EngineError
from lightning_iterppo.generation.engine import PolicyFiles
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.openai import OpenAIServer
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.run_directory import RunDirectory

pytest.importorskip("openai")
Make = Callable[..., Any]


class Server(JsonServer):
    """Samples from a tiny model of its own, with the adapter that a request names or the weights of a directory."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.renderer = ChatRenderer(model.tokenizer)
        self.adapters: dict[str, Path] = {}
        self.log: list[tuple[str, str]] = []  # what was loaded, unloaded and asked, in order
        self.requests: list[dict[str, Any]] = []  # for completions
        self.off = 0.0  # what is added to every log-probability
        self.silent = False  # says no token ids and no log-probabilities
        self.refuses: str | None = None
        self._one = threading.Lock()
        super().__init__(self._answer)

    def _answer(self, path: str, request: Any) -> tuple[int, Any]:
        if request is None:
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.adapters]}
        with self._one:
            if self.refuses is not None and self.refuses in path:
                return 400, {"error": {"message": "no room for it"}}
            return 200, self.complete(request) if path == "/v1/completions" else self.change(path, request)

    def change(self, path: str, request: dict[str, Any]) -> Any:
        name = request["lora_name"]
        self.log.append((path.rpartition("/")[2].partition("_")[0], name))
        if path == "/v1/load_lora_adapter":
            self.adapters[name] = Path(request["lora_path"])
        else:
            del self.adapters[name]
        return "done"

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["model"]
        self.log.append(("complete", name))
        self.requests.append(request)
        if name in self.adapters:
            self.model.load_variant(POLICY, self.adapters[name])
        else:
            whole = AutoModelForCausalLM.from_pretrained(name)
            for key, tensor in self.model.variant_tensors(POLICY).items():
                tensor.copy_(whole.get_parameter(key).data)
        prompt = request["prompt"]
        tokens = self.renderer.encode(prompt) if isinstance(prompt, str) else prompt
        engine = LocalEngine(self.model, stop_token_id=self.renderer.stop_token_id, seed=request["seed"])
        sampling = Sampling(request["temperature"], request["top_p"], request["max_tokens"])
        [said] = engine.generate([tokens], sampling)
        choice: dict[str, Any] = {"index": 0, "text": self.renderer.decode(said.token_ids)}
        choice |= {"finish_reason": "stop" if said.finished else "length", "logprobs": None}
        if not self.silent:
            choice["token_ids"] = list(said.token_ids)
            choice["logprobs"] = {"token_logprobs": [each + self.off for each in said.logprobs], "tokens": []}
        return {"id": "1", "object": "text_completion", "created": 1, "model": name, "choices": [choice]}


@pytest.fixture
def start(make_loop: Make) -> Iterator[Callable[[str], Server]]:
    """Starts servers of the tiny model that `make_loop` makes, too."""
    started: list[Server] = []

    def make(kind: str) -> Server:
        started.append(Server(make_loop(kind).language_model))
        return started[-1]

    yield make
    for each in started:
        each.close()


ADAPTERS = {"load_path": "load_lora_adapter", "unload_path": "unload_lora_adapter"}


def served_loop(
    make_loop: Make, kind: str, server: Server, *, run: Path | None = None, **more: Any
) -> IterativePPOLoop:
    how = more.pop("how", ADAPTERS)
    loop: IterativePPOLoop = make_loop(kind, **more)
    server_like_it = OpenAIServer(server.url, retries=0, **how)
    loop.talker.delivery = Delivery(server_like_it, loop.language_model, lambda: make_loop(kind).language_model)
    if run is not None:
        loop.run_dir = RunDirectory.create(run, "name: served\n")
        loop.talker.delivery.directory = loop.run_dir.engine
    return loop


def logprobs(conversations: list[Conversation]) -> list[tuple[float, ...]]:
    return [turn.suggestion.logprobs for c in conversations for turn in c.turns if turn.suggestion is not None]


def test_every_iteration_is_collected_with_the_weights_it_begins_with(
    make_loop: Make, start: Callable[[str], Server], tmp_path: Path
) -> None:
    server = start("lora")
    loop = served_loop(make_loop, "lora", server, run=tmp_path / "run")
    summary = loop.run()
    assert set(summary.engine) == {"before", "iteration-000", "iteration-001", "after"}
    for figures in summary.engine.values():
        # The server has weights of its own, and computes the same with them only if it was given the right ones.
        assert figures["difference_max"] is not None and figures["difference_max"] < 1e-4
        assert figures["recomputed"] == 0 and figures["lag"] == 0
    loaded = [name for what, name in server.log if what == "load"]
    # Before training and in the first iteration the weights are the same, and are given once.
    assert len(loaded) == len(set(loaded)) == 3
    assert [name for what, name in server.log if what == "unload"] == loaded[:-1]
    asked = [name for what, name in server.log if what == "complete"]
    assert list(dict.fromkeys(asked)) == loaded
    assert [path.name for path in (tmp_path / "run" / "engine").iterdir()] == loaded[-1:]
    made = read_conversations(tmp_path / "run" / "conversations" / "iteration-001.jsonl")
    assert {t.suggestion.policy_version for c in made for t in c.turns if t.suggestion} == {"iteration-001"}
    assert loop.metrics["engine/difference_mean"] == summary.engine["after"]["difference_mean"]


def test_a_request_says_what_the_recipe_says(make_loop: Make, start: Callable[[str], Server]) -> None:
    server = start("lora")
    options = {"return_token_ids": True}
    loop = served_loop(make_loop, "lora", server, how={**ADAPTERS, "stop_token_ids": True, "options": options})
    loop.talk(6, "collect", training=True)
    stop = loop.renderer.stop_token_id
    for request in server.requests:
        assert all(isinstance(token, int) for token in request["prompt"])
        said = {key: request[key] for key in ("max_tokens", "temperature", "top_p", "logprobs", "stop_token_ids")}
        assert said == {"max_tokens": 3, "temperature": 1, "top_p": 1, "logprobs": 1, "stop_token_ids": [stop]}
        assert request["return_token_ids"] is True
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds)
    server.requests.clear()
    plain = served_loop(make_loop, "lora", server, how={**ADAPTERS, "token_prompts": False, "logprobs": False})
    plain.talk(6, "collect", training=True)
    assert all(isinstance(request["prompt"], str) for request in server.requests)
    assert not any({"logprobs", "stop_token_ids"} & set(request) for request in server.requests)
    assert set(seeds) == {request["seed"] for request in server.requests}  # by the run's seed


def test_what_a_server_does_not_say_is_computed_by_the_trainers_weights(
    make_loop: Make, start: Callable[[str], Server]
) -> None:
    server = start("lora")
    server.silent = True
    loop = served_loop(make_loop, "lora", server)
    found = loop.talk(6, "collect", training=True)
    assert all(logprobs(found))
    ratios = action_log_ratios(loop.language_model, loop.renderer, found)
    assert all(abs(ratio) < 1e-4 for each in ratios.values() for ratio in each)
    figures = loop.summary.engine["collect"]
    assert figures["recomputed"] == len(logprobs(found))
    assert figures["difference_mean"] is None and figures["kl"] is None


def test_a_difference_is_measured_and_weighs_what_was_done(make_loop: Make, start: Callable[[str], Server]) -> None:
    server = start("lora")
    server.off = 0.1  # as if the server had found every token more likely than it is
    settings = {"logged_reward": "return", "iterations": 1}
    loop = served_loop(make_loop, "lora", server, settings=settings)
    seen: list[list[float]] = []
    prepare = loop.policy.prepare

    def watched(trees: Any, **more: Any) -> Any:
        seen.extend([r for r, fresh in zip(t.log_ratios, t.fresh, strict=True) if not fresh] for t in trees)
        return prepare(trees, **more)

    loop.policy.prepare = watched  # type: ignore[method-assign]
    loop.run()
    figures = loop.summary.engine["iteration-000"]
    assert figures["difference_mean"] == pytest.approx(0.1, abs=1e-4)
    assert figures["kl"] == pytest.approx(0.1 + torch.tensor(-0.1).expm1().item(), abs=1e-4)
    counts = {3: -0.3, 2: -0.2, 1: -0.1}  # of tokens: a response has up to three
    found = [ratio for each in seen for ratio in each]
    assert found and all(min(abs(ratio - each) for each in counts.values()) < 1e-3 for ratio in found)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_server_that_loads_whole_models_gets_merged_ones(
    kind: str, make_loop: Make, start: Callable[[str], Server], tmp_path: Path
) -> None:
    server = start("full")
    mark = tmp_path / "started"
    script = tmp_path / "restart.py"
    script.write_text(f"import sys; open({str(mark)!r}, 'a').write(sys.argv[1] + '\\n')")
    how = {"model": "{path}", "restart": f"{sys.executable} {script} {{path}}"}
    loop = served_loop(make_loop, kind, server, how=how, settings={"iterations": 1})
    summary = loop.run()
    for figures in summary.engine.values():
        assert figures["difference_max"] is not None and figures["difference_max"] < 1e-4
    # Once for the policy at the beginning, once for the trained one.
    assert len(mark.read_text().splitlines()) == 2
    assert list(dict.fromkeys(name for _, name in server.log)) == mark.read_text().splitlines()


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_overlapping_collects_beside_the_training_with_the_policy_before(
    kind: str, make_loop: Make, start: Callable[[str], Server], tmp_path: Path
) -> None:
    server = start(kind)
    how = ADAPTERS if kind == "lora" else {"model": "{path}"}
    settings = {"overlap": True, "iterations": 3, "evaluation_conversations": 0}
    loop = served_loop(make_loop, kind, server, run=tmp_path / "run", settings=settings, how=how)
    trained_while_asked: list[bool] = []
    improve = loop._improve

    def watched(iteration: int) -> None:
        loop.talker._ahead is not None and trained_while_asked.append(True)
        improve(iteration)

    loop._improve = watched  # type: ignore[method-assign]
    summary = loop.run()
    assert trained_while_asked == [True, True]  # nothing comes after the last iteration
    assert [summary.engine[f"iteration-{k:03d}"]["lag"] for k in range(3)] == [0, 1, 1]
    for figures in summary.engine.values():
        assert figures["difference_max"] is not None and figures["difference_max"] < 1e-4
    versions = [
        {t.suggestion.policy_version for c in read_conversations(loop.run_dir.conversations(k)) for t in c.turns}
        for k in range(3)
        if loop.run_dir is not None
    ]
    assert versions == [{"iteration-000"}, {"iteration-000"}, {"iteration-001"}]
    # Two policies collected; the last one is never asked.
    assert len({name for what, name in server.log if what == "complete"}) == 2
    seeds = [
        c.seed for k in range(3) for c in read_conversations(tmp_path / f"run/conversations/iteration-{k:03d}.jsonl")
    ]
    assert len(seeds) == len(set(seeds)) == 60
    assert all((iteration.tokens["generated"] or 0) > 0 for iteration in summary.iterations)


def test_measuring_in_between_waits_for_the_conversations_ahead_and_does_not_lose_them(
    make_loop: Make, start: Callable[[str], Server], tmp_path: Path
) -> None:
    server = start("lora")
    settings = {"overlap": True, "iterations": 2, "evaluate_every": 1}
    loop = served_loop(make_loop, "lora", server, run=tmp_path / "run", settings=settings)
    summary = loop.run()
    assert summary.engine["iteration-001"]["lag"] == 1
    assert all((figures["difference_max"] or 0) < 1e-4 for figures in summary.engine.values())
    # The first weights have had all of those conversations, each once, and nobody else's.
    first = next(name for what, name in server.log if what == "load")
    turns = [
        len(c.turns)
        for name in ("before", "iteration-000", "iteration-001")
        for c in read_conversations(tmp_path / f"run/conversations/{name}.jsonl")
    ]
    assert server.log.count(("complete", first)) == sum(turns)


def test_a_server_that_refuses_the_next_weights_stops_the_run(make_loop: Make, start: Callable[[str], Server]) -> None:
    server = start("lora")
    settings = {"overlap": True, "iterations": 3, "evaluation_conversations": 0}
    loop = served_loop(make_loop, "lora", server, settings=settings)
    improve = loop._improve

    def then_refuse(iteration: int) -> None:
        improve(iteration)
        server.refuses = "load"

    loop._improve = then_refuse  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"engine at .*/v1/load_lora_adapter failed: BadRequestError: .*no room"):
        loop.run()
    assert loop.summary.status == "failed"


def test_a_server_that_refuses_or_is_not_there_is_one_line(make_loop: Make, start: Callable[[str], Server]) -> None:
    server = start("lora")
    loop = served_loop(make_loop, "lora", server)
    server.refuses = "completions"
    with pytest.raises(EngineError, match=r"^the engine at http://127.*failed: BadRequestError: .*no room for it"):
        loop.talk(2, "collect", training=True)
    gone = OpenAIServer("http://127.0.0.1:9/v1", retries=0, **ADAPTERS)
    with pytest.raises(EngineError, match=r"^the engine at http://127.0.0.1:9/v1 failed: APIConnectionError"):
        gone.load(PolicyFiles(Path("/nowhere"), "a"), None)


def test_a_restart_that_fails_says_what_it_said() -> None:
    failing = OpenAIServer("http://127.0.0.1:9/v1", restart=f"{sys.executable} -c 'raise SystemExit(\"no GPU\")'")
    with pytest.raises(EngineError, match=r"engine.restart: .* ended with 1: no GPU"):
        failing.load(PolicyFiles(Path("/nowhere"), "a"), None)
    with pytest.raises(EngineError, match=r"engine.restart: /nowhere/at/all: No such file"):
        OpenAIServer("http://127.0.0.1:9/v1", restart="/nowhere/at/all").load(PolicyFiles(Path("/a"), "a"), None)
    late = OpenAIServer("http://127.0.0.1:9/v1", restart=f"{sys.executable} -c pass", start_timeout=0.01, retries=0)
    with pytest.raises(EngineError, match=r"was done 0.01 s ago, but the engine at .* failed"):
        late.load(PolicyFiles(Path("/nowhere"), "a"), None)


def said(text: str = "", finish: str = "stop", **more: Any) -> Any:
    logprobs = SimpleNamespace(**{"tokens": None, "token_logprobs": None, **more.pop("logprobs", {})})
    return SimpleNamespace(text=text, finish_reason=finish, logprobs=logprobs, **more)


def test_tokens_are_taken_from_wherever_a_server_says_them(make_language_model: Make) -> None:
    renderer = ChatRenderer(make_language_model("lora").tokenizer)
    stop, (hello, yes) = renderer.stop_token_id, renderer.encode("hello yes")
    server = OpenAIServer("http://127.0.0.1:9/v1")
    engine = server.engine(PolicyFiles(Path("/a"), "a"), 0, renderer)
    by_number = said(token_ids=[hello, stop], logprobs={"token_logprobs": [-1.0, -2.0]})
    cases = [
        (by_number, (hello, stop), (-1.0, -2.0), True),
        (
            said(logprobs={"tokens": [f"token_id:{hello}", f"token_id:{stop}"], "token_logprobs": [-1.0, -2.0]}),
            (hello, stop),
            (-1.0, -2.0),
            True,
        ),
        # Words alone: taken apart, and nobody knows how likely these tokens were.
        (said("hello yes", logprobs={"tokens": ["hello"], "token_logprobs": [-1.0]}), (hello, yes, stop), (), True),
        (said("hello yes", "length"), (hello, yes), (), False),
        # The end token is left out, and so is its log-probability.
        (said(token_ids=[hello], logprobs={"token_logprobs": [-1.0]}), (hello, stop), (), True),
        (said(token_ids=[hello], finish="length", logprobs={"token_logprobs": [None]}), (hello,), (), False),
        (said(""), (stop,), (), True),
    ]
    for choice, tokens, likely, finished in cases:
        response = engine._response(choice)
        assert (response.token_ids, response.logprobs, response.finished) == (tokens, likely, finished)
    with pytest.raises(EngineError, match="answered with nothing"):
        engine._response(said("", "length"))
    with pytest.raises(EngineError, match="has another tokenizer: it said token 100000"):
        engine._response(said(token_ids=[100000]))


def test_what_cannot_go_together_is_refused(make_language_model: Make, word_customer: Any) -> None:
    with pytest.raises(ConfigError, match=r"loop.overlap collects beside the training, but there is no engine"):
        compose("shop", ["loop.overlap=true"])
    with pytest.raises(ConfigError, match=r"sampling.temperature is 0.5 .* with an engine both must be 1"):
        compose("shop", ["engine=vllm", "sampling.temperature=0.5"])
    with pytest.raises(ConfigError, match=r"engine.load_path and engine.restart are two ways"):
        OpenAIServer("http://localhost/v1", load_path="load", restart="script")
    adapters = OpenAIServer("http://localhost/v1", **ADAPTERS)
    with pytest.raises(ConfigError, match=r"the engine loads adapters, but model.adaptation is full"):
        Delivery(adapters, make_language_model("full"), lambda: make_language_model("full"))
    with pytest.raises(ConfigError, match=r"engine: named_in_recipes.WordCustomer has no takes"):
        build_loop(compose("probe", ["engine._target_=named_in_recipes.WordCustomer"]), kept=False)


@pytest.mark.parametrize("name", ["vllm", "sglang", "transformers"])
def test_the_recipes_servers_can_be_made(name: str) -> None:
    config = compose("probe", ["model/adaptation=lora", f"engine={name}"])
    loop = build_loop(config, kept=False)
    assert loop.talker.delivery is not None
    assert loop.talker.delivery.server.takes == ("merged" if name == "transformers" else "adapter")
    assert compose("probe", ["engine=local"]).engine == {}
