"""`iterppo estimate` and `iterppo promote`: a tiny run, logs of its policies, decisions and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils.logging import disable_progress_bar

from lightning_iterppo import operations, promotion
from lightning_iterppo.cli import main
from lightning_iterppo.composition import compose, load_recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.data.turns import split_conversations
from lightning_iterppo.evaluation.comparison import Comparison, of_outcomes
from lightning_iterppo.evaluation.rates import outcome_rate

SMALL = [
    *("customer._target_=named_in_recipes.WordCustomer", "logs=none", "trainer=cpu", "callbacks.progress=null"),
    *("model.scratch.hidden_size=16", "model.scratch.layers=1", "model.scratch.heads=2"),
    *("model.scratch.vocabulary=[red,blue,'?',yes,no]", "sampling.max_new_tokens=3"),
    *("loop.iterations=2", "loop.conversations=24", "loop.evaluation_conversations=0", "loop.batch=30"),
    *("critic.epochs=1", "critic.batch_conversations=8", "policy.rounds=1", "policy.ppo_epochs=1"),
]
Fails = Callable[..., str]
Promised = Callable[[Path, float], None]


def trained(path: Path, *more: str) -> Path:
    operations.train(compose("probe", [*SMALL, *more]), path, False)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, word_customer: Any) -> Path:
    disable_progress_bar()  # as the command line does where it is the first to import transformers
    return trained(tmp_path_factory.mktemp("promoted") / "run", "model/adaptation=lora")


@pytest.fixture(scope="module")
def logs(run: Path) -> Path:
    """Conversations of the run's first policy."""
    file = run.parent / "logs.jsonl"
    operations.collect(load_recipe(run / "recipe.yaml"), file, run / "checkpoints" / "iteration-000", 90)
    return file


@pytest.fixture(scope="module")
def improved(run: Path, logs: Path) -> Path:
    """What a company with logs alone makes of the run's first policy: `iterppo fit-critic`, then `iterppo improve`."""
    config, start = load_recipe(run / "recipe.yaml"), run / "checkpoints" / "iteration-000"
    critic, path = run.parent / "critic", run.parent / "improved"
    operations.fit_critic(config, [logs], [], critic, start)
    operations.improve(config, critic, [logs], path, start)
    return path


@pytest.fixture
def promised() -> Iterator[Promised]:
    """Makes Q have promised a gain in a run's last iteration, for the time of a test."""
    kept: dict[Path, str] = {}

    def promise(run: Path, gain: float) -> None:
        file = run / "summary.json"
        text = kept.setdefault(file, file.read_text(encoding="utf-8"))
        record = json.loads(text)
        record["iterations"][-1]["policy"]["reward_gain"] = gain
        file.write_text(json.dumps(record), encoding="utf-8")

    yield promise
    for file, text in kept.items():
        file.write_text(text, encoding="utf-8")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail with exit code 2 and one line, and gives the line."""

    def fail(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("iterppo: ") and printed.err.count("\n") == 1
        return printed.err

    return fail


def printed(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert main([*(str(word) for word in words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def changed(file: Path, to: Path, change: Callable[[Conversation], Conversation]) -> Path:
    write_conversations(to, [change(c) for c in read_conversations(file)])
    return to


def won(path: Path, count: int, of: int, like: Path) -> Path:
    """Conversations of which so many went well."""
    talks = read_conversations(like)[:of]
    write_conversations(path, [replace(c, outcome=float(i < count)) for i, c in enumerate(talks)])
    return path


# -- estimate ----------------------------------------------------------------------------------------------------------


def test_logs_of_the_policy_itself_give_their_plain_mean(
    run: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(
        capsys, "estimate", run / "recipe.yaml", "--policy", run / "checkpoints/iteration-000", "--data", logs
    )
    mean = outcome_rate(read_conversations(logs)).return_mean
    assert found["verdict"] == "estimated" and found["reasons"] == []
    assert found["overlap"]["mean_weight"] == pytest.approx(1, abs=1e-3)
    assert found["overlap"]["effective_sample_size"] == pytest.approx(90, abs=0.1)
    assert found["pdwis"]["value"] == pytest.approx(mean, abs=1e-3) == found["logs"]["return_mean"]
    for name in ("fqe", "pdwis", "doubly_robust"):
        low, high = found[name]["ci95"]
        assert low < found[name]["value"] < high and low < mean < high
    assert found["logs"]["chosen_turns"] == found["logs"]["turns"]


def test_another_policy_has_other_weights(run: Path, logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "estimate", run / "recipe.yaml", "--policy", run, "--data", logs)
    assert 1 < found["overlap"]["effective_sample_size"] < 89.99


def test_logs_in_which_people_chose_cannot_tell(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = changed(
        logs,
        tmp_path / "people.jsonl",
        lambda c: replace(c, turns=tuple(replace(t, suggestion=None, disposition="unassisted") for t in c.turns)),
    )
    found = printed(capsys, "estimate", run / "recipe.yaml", "--data", people)
    assert found["verdict"] == "cannot tell"
    assert "no turn has a suggestion with known log-probabilities" in found["reasons"][0]
    assert found["pdwis"] == found["doubly_robust"] == found["fqe"] == {"value": None, "ci95": None}
    assert set(found["overlap"].values()) == {None}
    assert main(["estimate", str(run / "recipe.yaml"), "--data", str(people)]) == 0
    assert "these logs cannot tell: no turn" in capsys.readouterr().out


def test_a_turn_that_a_person_took_has_ratio_1(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_by_a_person(c: Conversation) -> Conversation:
        return replace(c, turns=(*c.turns[:-1], replace(c.turns[-1], suggestion=None, disposition="unassisted")))

    mixed = changed(logs, tmp_path / "mixed.jsonl", last_by_a_person)
    found = printed(capsys, "estimate", run / "recipe.yaml", "--policy", run, "--data", mixed)
    assert found["logs"]["chosen_turns"] == found["logs"]["turns"] - 90
    whole = printed(capsys, "estimate", run / "recipe.yaml", "--policy", run, "--data", logs)
    assert found["overlap"]["effective_sample_size"] > whole["overlap"]["effective_sample_size"]


def test_a_rejected_suggestion_is_still_the_action(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rejected(c: Conversation) -> Conversation:
        last = replace(c.turns[-1], message="yes yes", disposition="rejected")
        return replace(c, turns=(*c.turns[:-1], last))

    other = changed(logs, tmp_path / "rejected.jsonl", rejected)
    found = printed(capsys, "estimate", run / "recipe.yaml", "--policy", run, "--data", other)
    whole = printed(capsys, "estimate", run / "recipe.yaml", "--policy", run, "--data", logs)
    assert found["overlap"] == pytest.approx(whole["overlap"], rel=1e-4)


def test_what_cannot_be_weighted_is_left_out_and_counted(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talks = read_conversations(logs)
    talks[0] = replace(talks[0], outcome=None)
    made = talks[1].turns[0].suggestion
    assert made is not None
    nobody_kept = replace(talks[1].turns[0], suggestion=replace(made, logprobs=()))
    talks[1] = replace(talks[1], turns=(nobody_kept, *talks[1].turns[1:]))
    write_conversations(tmp_path / "some.jsonl", talks)
    policy = run / "checkpoints/iteration-000"
    found = printed(capsys, "estimate", run / "recipe.yaml", "--policy", policy, "--data", tmp_path / "some.jsonl")
    counts = {key: found["logs"][key] for key in ("conversations", "censored", "unknown_behaviour")}
    assert counts == {"conversations": 88, "censored": 1, "unknown_behaviour": 1}


def test_logs_and_recipes_that_do_not_fit(run: Path, logs: Path, tmp_path: Path, fails: Fails) -> None:
    unknown = changed(logs, tmp_path / "unknown.jsonl", lambda c: replace(c, outcome=None))
    assert "none of the conversations has a known outcome" in fails("estimate", run / "recipe.yaml", "--data", unknown)

    def another_models(c: Conversation) -> Conversation:
        made = c.turns[0].suggestion
        assert made is not None
        return replace(c, turns=(replace(c.turns[0], suggestion=replace(made, text="green")), *c.turns[1:]))

    foreign = changed(logs, tmp_path / "foreign.jsonl", another_models)
    assert "turn 1: the suggestion's token_ids do not spell its text" in fails(
        "estimate", run / "recipe.yaml", "--data", foreign
    )
    assert "add sampling.temperature=1 sampling.top_p=1" in fails(
        "estimate", run / "recipe.yaml", "--data", logs, "sampling.temperature=0.5"
    )
    assert "there is no file" in fails("estimate", run / "recipe.yaml", "--data", tmp_path / "none.jsonl")
    assert "there is no policy" in fails("estimate", run / "recipe.yaml", "--policy", "none", "--data", logs)


# -- comparisons by hand -----------------------------------------------------------------------------------------------


def test_beta_posteriors_by_hand() -> None:
    found = of_outcomes([1.0], [0.0])
    # P(x > y) for x ~ Beta(2, 1) and y ~ Beta(1, 2): ∫ 2x (1 - (1 - x)²) dx = 5/6; the means are 2/3 and 1/3.
    assert found.probability_better == pytest.approx(5 / 6, abs=0.005)
    assert found.difference == pytest.approx(1 / 3, abs=0.005)
    level = of_outcomes([1.0, 0.0] * 20, [0.0, 1.0] * 20)
    assert level.probability_better == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="at least one conversation"):
        of_outcomes([], [1.0])


def test_amounts_are_compared_by_the_bootstrap() -> None:
    found = of_outcomes([10.0, 12.0, 14.0] * 10, [5.0, 6.0, 7.0] * 10)
    assert found.difference == pytest.approx(6, abs=0.05) and found.probability_better == 1


def test_regret_is_what_is_lost_where_the_candidate_is_worse() -> None:
    found = Comparison.of_draws(np.array([0.3, 0.1, -0.2, 0.0]))
    assert found.expected_regret == pytest.approx(0.05)
    assert found.probability_better == pytest.approx(2.5 / 4)


# -- at the end of training from logs alone ---------------------------------------------------------------------------

OFFLINE = [
    *("customer=none", "warm_start.epochs=0", "loop.iterations=1", "policy.learning_rate=1e-9"),
    *("model/adaptation=lora", "loop.judge_fraction=0.75"),
]


def from_logs(file: Path, path: Path, *more: str) -> tuple[dict[str, Any], Path]:
    words = [each for each in SMALL if not each.startswith(("customer", "logs"))]
    operations.train(compose("probe", [*words, *OFFLINE, "logs=file", f"logs.path={file}", *more]), path, False)
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return summary, path


def test_logs_that_were_held_back_judge_what_was_learnt_from_the_others(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, run = from_logs(logs, tmp_path / "run")
    found = summary["estimate"]
    assert found["verdict"] == "estimated" and found["logs"]["conversations"] == round(0.75 * 90)
    assert summary["logs"] is None, "the warm start was left out"
    train, held = split_conversations(read_conversations(logs), 0.75, seed=1)
    write_conversations(tmp_path / "held.jsonl", held)
    capsys.readouterr()
    again = printed(capsys, "estimate", run / "recipe.yaml", "--policy", run, "--data", tmp_path / "held.jsonl")
    assert found["pdwis"]["value"] == pytest.approx(again["pdwis"]["value"], abs=1e-6)
    assert summary["iterations"][0]["critic"]["turns"] < sum(len(talk.turns) for talk in train)


def test_logs_of_people_are_all_learnt_from_and_say_why_they_cannot_tell(logs: Path, tmp_path: Path) -> None:
    def alone(talk: Conversation) -> Conversation:
        return replace(talk, turns=tuple(replace(t, suggestion=None, disposition="unassisted") for t in talk.turns))

    people = changed(logs, tmp_path / "people.jsonl", alone)
    summary, _ = from_logs(people, tmp_path / "run", "warm_start.epochs=1")
    assert summary["estimate"]["verdict"] == "cannot tell"
    assert "no turn has a suggestion" in summary["estimate"]["reasons"][0]
    assert summary["logs"]["conversations"] == 90
    assert from_logs(people, tmp_path / "second", "loop.judge_fraction=0")[0]["estimate"] is None
    warm, _ = from_logs(logs, tmp_path / "third", "sampling.temperature=0.5")
    assert "temperature 0.5" in warm["estimate"]["reasons"][0]


def test_logs_of_another_model_are_learnt_from_and_judge_nothing(logs: Path, tmp_path: Path) -> None:
    def foreign(talk: Conversation) -> Conversation:
        turns = (replace(t, suggestion=t.suggestion and replace(t.suggestion, text="no no no")) for t in talk.turns)
        return replace(talk, turns=tuple(turns))

    summary, _ = from_logs(changed(logs, tmp_path / "foreign.jsonl", foreign), tmp_path / "run")
    assert summary["status"] == "finished" and summary["estimate"]["verdict"] == "cannot tell"
    assert "do not spell" in summary["estimate"]["reasons"][0]


# -- promote -----------------------------------------------------------------------------------------------------------


def test_a_better_candidate_is_promoted(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = won(tmp_path / "new.jsonl", 50, 60, logs), won(tmp_path / "old.jsonl", 30, 60, logs)
    found = printed(capsys, "promote", run, "--fresh", new, old)
    assert found == json.loads((run / "promotion.json").read_text(encoding="utf-8"))
    assert (found["decision"], found["reasons"], found["verdict"]) == ("promote", [], "estimated")
    assert found["probability_better"] > 0.99 and found["expected_regret"] < 0.001
    assert found["evidence"]["candidate"]["outcome_rate"] == pytest.approx(50 / 60)
    assert [Path(found[key]).parent.name for key in ("candidate", "current")] == ["iteration-001", "iteration-000"]
    names = [guard["name"] for guard in found["guards"]]
    assert names == ["reward hacking", "kl", "perplexity", "length", "repetition", "script", "language"]
    *measured, language = found["guards"]
    assert all(guard["passed"] for guard in measured)
    assert language["passed"] is None and "too few to compare" in language["says"], "these say one word"


def test_a_guard_that_cannot_be_measured_says_so_and_blocks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word_customer: Any
) -> None:
    run = trained(tmp_path / "run", "model/adaptation=full")  # which keeps no reference unless a KL to it is wanted
    talks = run / "conversations" / "iteration-001.jsonl"
    new, old = won(tmp_path / "new.jsonl", 22, 24, talks), won(tmp_path / "old.jsonl", 10, 24, talks)
    found = printed(capsys, "promote", run, "--fresh", new, old)
    (fluent,) = [guard for guard in found["guards"] if guard["name"] == "fluency"]
    assert fluent["passed"] is None and "say --reference DIR" in fluent["says"]
    reference = ("--reference", run / "checkpoints/iteration-000")
    found = printed(capsys, "promote", run, "--fresh", new, old, *reference)
    assert [guard["passed"] for guard in found["guards"]] == [True] * 6 + [None]


def test_a_worse_candidate_is_not(run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = won(tmp_path / "new.jsonl", 30, 60, logs), won(tmp_path / "old.jsonl", 50, 60, logs)
    assert main(["promote", str(run), "--fresh", str(new), str(old)]) == 3
    said = capsys.readouterr().out
    assert "against it: the probability that the candidate is better is 0.00" in said
    assert "against it: the expected regret is" in said and "promotion.json" in said
    assert json.loads((run / "promotion.json").read_text(encoding="utf-8"))["decision"] == "keep"


def test_a_guard_that_fails_blocks_and_is_named(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = won(tmp_path / "new.jsonl", 50, 60, logs), won(tmp_path / "old.jsonl", 30, 60, logs)
    reference = ("--reference", run / "checkpoints/iteration-000")
    found = printed(capsys, "promote", run, "--fresh", new, old, *reference, "--min-distinct-ratio", "1.5", code=3)
    assert found["decision"] == "keep" and found["probability_better"] > 0.99
    assert [reason.split(":")[0] for reason in found["reasons"]] == ["guard repetition"]
    assert found["thresholds"]["distinct_ratio"] == 1.5


def test_q_that_promised_what_did_not_come_blocks(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run / "summary.json"
    kept = summary.read_text(encoding="utf-8")
    record = json.loads(kept)
    record["iterations"][0]["policy"]["reward_gain"] = 0.95
    summary.write_text(json.dumps(record), encoding="utf-8")
    try:
        new, old = won(tmp_path / "new.jsonl", 50, 60, logs), won(tmp_path / "old.jsonl", 30, 60, logs)
        found = printed(capsys, "promote", run, "--fresh", new, old, code=3)
    finally:
        summary.write_text(kept, encoding="utf-8")
    assert "guard reward hacking: Q promised +0.950" in found["reasons"][0]
    assert next(step["where"] for step in found["guards"][0]["figures"]["steps"]) == "iteration 0"


@pytest.mark.parametrize(("gain", "passed"), [(0.0, True), (0.95, False)])
def test_logs_alone_measure_what_came_of_a_promise(
    run: Path,
    improved: Path,
    logs: Path,
    promised: Promised,
    capsys: pytest.CaptureFixture[str],
    gain: float,
    passed: bool,
) -> None:
    promised(improved, gain)
    found = printed(capsys, "promote", improved, "--data", logs, "--min-probability", "0", code=3 * (not passed))
    assert found["current"] == str((run / "checkpoints/iteration-000/policy").resolve()), "what `improve` began with"
    guard = found["guards"][0]
    (step,) = guard["figures"]["steps"]
    assert guard["passed"] is passed and (step["by"], step["predicted"]) == ("off-policy", gain)
    assert step["seen"] == found["difference"] and step["interval"] == pytest.approx(found["ci95"])
    assert [reason.split(":")[0] for reason in found["reasons"]] == ([] if passed else ["guard reward hacking"])


def test_fresh_conversations_of_both_measure_what_came_of_a_promise(
    run: Path, improved: Path, logs: Path, tmp_path: Path, promised: Promised, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = won(tmp_path / "new.jsonl", 50, 60, logs), won(tmp_path / "old.jsonl", 30, 60, logs)
    promised(improved, 0.6)
    fresh = ("--fresh", new, old, "--current", run / "checkpoints/iteration-000")
    found = printed(capsys, "promote", improved, *fresh, code=3)
    (step,) = found["guards"][0]["figures"]["steps"]
    assert (step["by"], step["predicted"], step["seen"]) == ("fresh", 0.6, pytest.approx(1 / 3))
    assert "guard reward hacking: Q promised +0.600" in found["reasons"][0]


def test_the_checkpoint_before_is_what_the_last_improvement_began_with(
    run: Path, logs: Path, promised: Promised, capsys: pytest.CaptureFixture[str]
) -> None:
    promised(run, 0.95)
    guard = printed(capsys, "promote", run, "--data", logs, code=3)["guards"][0]
    assert [(step["by"], step["passed"]) for step in guard["figures"]["steps"]] == [
        *(("collected", True), ("off-policy", False))
    ]


def test_another_pair_of_policies_says_nothing_of_the_promise(
    run: Path, improved: Path, logs: Path, promised: Promised, capsys: pytest.CaptureFixture[str]
) -> None:
    promised(improved, 0.95)
    other = ("--candidate", run / "checkpoints/iteration-000", "--current", improved)
    for pair in (other, ("--current", improved)):
        found = printed(
            capsys, "promote", improved, *pair, "--data", logs, "--max-regret", "9", "--min-probability", "0"
        )
        guard = found["guards"][0]
        assert guard["passed"] is None and "are not those before and after the run's last improvement" in guard["says"]


def test_people_who_talked_need_no_current_policy(
    improved: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = won(tmp_path / "new.jsonl", 50, 60, logs), won(tmp_path / "old.jsonl", 30, 60, logs)
    summary = improved / "summary.json"
    kept = summary.read_text(encoding="utf-8")
    summary.write_text(json.dumps(json.loads(kept) | {"start": None}), encoding="utf-8")
    try:
        found = printed(capsys, "promote", improved, "--fresh", new, old)
    finally:
        summary.write_text(kept, encoding="utf-8")
    assert (found["decision"], found["current"]) == ("promote", None)
    assert Path(found["candidate"]) == improved / "checkpoints/iteration-000/policy"
    hacking, *others, language = found["guards"]
    assert hacking["passed"] is None and "say --current DIR" in hacking["says"]
    assert language["passed"] is None, "these say one word"
    assert others and all(guard["passed"] for guard in others)


def test_off_policy_a_policy_is_no_better_than_itself(
    run: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = run / "checkpoints/iteration-000"
    found = printed(capsys, "promote", run, "--candidate", policy, "--current", policy, "--data", logs, code=3)
    assert (found["probability_better"], found["expected_regret"], found["difference"]) == (0.5, 0, 0)
    assert found["evidence"]["kind"] == "off-policy" and found["evidence"]["files"] == [str(logs)]


def test_logs_that_cannot_tell_promote_nobody(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_conversations(tmp_path / "few.jsonl", read_conversations(logs)[:20])
    found = printed(capsys, "promote", run, "--data", tmp_path / "few.jsonl", code=3)
    assert (found["decision"], found["verdict"], found["probability_better"]) == ("keep", "cannot tell", None)
    assert any(
        reason.startswith("these logs cannot tell of the candidate: the effective") for reason in found["reasons"]
    )


def test_promotions_that_cannot_be_decided(run: Path, logs: Path, tmp_path: Path, fails: Fails) -> None:
    (run / "promotion.json").unlink(missing_ok=True)
    assert "say either --data FILE… (logs that did not train the candidate) or --fresh" in fails("promote", run)
    assert "say either" in fails("promote", run, "--data", logs, "--fresh", logs, logs)
    assert "no checkpoint before" in fails(
        "promote", run, "--candidate", run / "checkpoints/iteration-000", "--data", logs
    )
    assert "--candidate: there is no policy" in fails("promote", run, "--candidate", "none", "--data", logs)
    assert "--reference" in fails("promote", run, "--data", logs, "--reference", tmp_path)
    assert "--max-kl must not be negative" in fails("promote", run, "--data", logs, "--max-kl", "-1")
    assert "is not a run" in fails("promote", tmp_path, "--data", logs)
    (tmp_path / "bad.jsonl").write_text("{}\n", encoding="utf-8")
    assert "bad.jsonl:1:" in fails("promote", run, "--data", tmp_path / "bad.jsonl")
    assert not (run / "promotion.json").exists()


def test_conversations_of_unknown_outcome_are_found_before_anything_is_loaded(
    run: Path, logs: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "promotion.json").unlink(missing_ok=True)
    unknown = changed(logs, tmp_path / "unknown.jsonl", lambda c: replace(c, outcome=None))
    monkeypatch.setattr(promotion, "quiet_loop", lambda config: pytest.fail("a model would be loaded"))
    assert "no outcome of the candidate's conversations is known" in fails("promote", run, "--fresh", unknown, logs)
    assert "no outcome of the current policy's" in fails("promote", run, "--fresh", logs, unknown)
    assert "none of the conversations has a known outcome" in fails("promote", run, "--data", unknown)
    assert not (run / "promotion.json").exists()
