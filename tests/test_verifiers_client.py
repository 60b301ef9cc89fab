"""A policy as the model that verifiers evaluates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.collection import collect
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Message
from lightning_iterppo.errors import ConfigError, CustomerError, RunDirectoryError
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.operations import train

vf = pytest.importorskip("verifiers", reason="environments of verifiers need the extra `verifiers`")
if not hasattr(vf, "MultiTurnEnv"):
    pytest.skip("this release of verifiers has no MultiTurnEnv", allow_module_level=True)

from lightning_iterppo.customers.verifiers import VerifiersCustomer  # noqa: E402
from lightning_iterppo.verifiers_client import PolicyClient  # noqa: E402

COLOURS = "red blue green which ? no 1 2 say a colour".split()
GREEDY = {"temperature": 0.0, "max_tokens": 4}
ASKED = [{"role": "system", "content": "say a colour"}, {"role": "user", "content": "which ?"}]


@pytest.fixture
def client(make_language_model: Callable[..., LanguageModel]) -> PolicyClient:
    return PolicyClient(make_language_model(vocabulary=COLOURS))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent / "customers")
    return vf.load_environment("colour-environment")


def ask(client: PolicyClient, prompt: Any = ASKED, sampling: Any = GREEDY, **more: Any) -> Any:
    return asyncio.run(client.get_response(prompt, "policy", sampling, **more))


def test_an_environment_evaluates_a_policy(client: PolicyClient, environment: Any) -> None:
    results = environment.evaluate_sync(client, "policy", sampling_args=GREEDY, num_examples=4, rollouts_per_example=2)
    outputs = results["outputs"]
    assert len(outputs) == 8 and results["metadata"]["avg_error"] == 0
    for output in outputs:
        said = [message["content"] for message in output["completion"] if message["role"] == "assistant"]
        assert 1 <= len(said) <= 3
        named = output["answer"] in said[-1]
        assert output["reward"] == (0.5 ** (len(said) - 1) if named else 0.0)
    assert results["metadata"]["usage"]["output_tokens"] > 0


def test_verifiers_and_a_run_see_the_same_conversation(client: PolicyClient, environment: Any) -> None:
    """The environment with a policy as its model, and the policy with the environment as its customer."""
    arguments = {"rows": 1}
    (output,) = vf.load_environment("colour-environment", **arguments).evaluate_sync(client, "policy", GREEDY)[
        "outputs"
    ]
    (conversation,) = collect(
        lambda: VerifiersCustomer("colour-environment", arguments),  # type: ignore[arg-type, return-value]
        [0],
        engine=LocalEngine(client.model, stop_token_id=client.renderer.stop_token_id, seed=0, keep=True),
        renderer=client.renderer,
        sampling=Sampling(0.0, 1.0, 4),
        policy_version="test",
        prefix="test",
    )
    said = [message["content"] for message in output["completion"] if message["role"] == "assistant"]
    assert [turn.message for turn in conversation.turns] == said
    assert conversation.outcome == output["reward"]


def test_the_answer_is_what_the_policy_says_to_this_prompt(client: PolicyClient) -> None:
    model, renderer = client.model, client.renderer
    prompt = renderer.encode(
        renderer.prompt_text(
            "say a colour",
            [Message("customer", "which ?"), Message("agent", "green"), Message("customer", "no 1")],
        )
    )
    engine = LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=0)
    (expected,) = engine.generate([prompt], Sampling(0.0, 1.0, 4))
    talked = [*ASKED, {"role": "assistant", "content": "green"}, {"role": "user", "content": "no 1"}]
    answer = ask(client, talked)
    assert answer.message.content == renderer.decode(expected.token_ids)
    tokens = answer.message.tokens
    assert tokens.prompt_ids == prompt and tuple(tokens.completion_ids) == expected.token_ids
    assert tokens.completion_logprobs == list(expected.logprobs)
    assert answer.message.is_truncated is not expected.finished
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(expected.token_ids))


def test_requests_that_wait_together_are_sampled_together(
    client: PolicyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    generate = client.engine.generate

    def counted(prompts: Any, sampling: Sampling) -> Any:
        rows.append(len(prompts))
        return generate(prompts, sampling)

    monkeypatch.setattr(client.engine, "generate", counted)

    async def many() -> list[Any]:
        short = {**GREEDY, "max_tokens": 1}
        asked = [client.get_response(ASKED, "policy", wanted) for wanted in (GREEDY, short, GREEDY, GREEDY)]
        return await asyncio.gather(*asked)

    answers = asyncio.run(many())
    assert rows == [3, 1]
    assert answers[0].message.content == answers[2].message.content == ask(client).message.content
    assert len(answers[1].message.tokens.completion_ids) == 1


def test_a_failure_of_the_engine_reaches_who_asked(client: PolicyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(client.engine, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(client)


def test_a_prompt_beyond_the_context_ends_the_rollout_as_verifiers_wants_it(client: PolicyClient) -> None:
    with pytest.raises(vf.OverlongPromptError, match="it reads 128"):
        ask(client, [{"role": "user", "content": "red " * 130}])


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"sampling": {"stop": ["x"]}}, ConfigError, r"sampling_args has stop=\['x'\]; a policy takes temperature"),
        ({"sampling": {"n": 2}}, ConfigError, "sampling_args has n=2"),
        ({"sampling": {"temperature": -1}}, ConfigError, "sampling_args: sampling.temperature must be 0 or more"),
        ({"tools": [vf.Tool(name="lamp", description="", parameters={})]}, ConfigError, "has the tool 'lamp'"),
        ({"prompt": [{"role": "tool", "content": "on"}]}, ConfigError, "says something as tool"),
        ({"prompt": [{"role": "user", "content": [{"type": "input_audio"}]}]}, CustomerError, "type 'input_audio'"),
    ],
)
def test_what_a_policy_cannot_do_is_one_line(
    client: PolicyClient, more: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as found:
        ask(client, **more)
    assert "\n" not in str(found.value)


def test_a_runs_policy_is_evaluated(tmp_path: Path, environment: Any) -> None:
    small = ["loop.iterations=1", "loop.conversations=8", "loop.evaluation_conversations=4", "warm_start.epochs=1"]
    config = compose("probe", ["logger=none", "callbacks=minimal", "trainer.accelerator=cpu", *small])
    run = tmp_path / "run"
    with pytest.raises(RunDirectoryError, match="is not a run"):
        PolicyClient.of_run(run)
    train(config, run, resume=False)
    client = PolicyClient.of_run(run)
    assert client.sampling.max_new_tokens == config.sampling.max_new_tokens
    assert client.renderer.system == config.model.system
    results = environment.evaluate_sync(client, "policy", num_examples=2)
    assert len(results["outputs"]) == 2 and results["metadata"]["avg_error"] == 0
    (first, second) = (PolicyClient.of_run(run, where) for where in (None, run / "checkpoints" / "iteration-000"))
    assert ask(first).message.tokens.completion_logprobs == ask(second).message.tokens.completion_logprobs
    with pytest.raises(RunDirectoryError, match=r"policy .*nothing"):
        PolicyClient.of_run(run, tmp_path / "nothing")
