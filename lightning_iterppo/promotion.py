"""`iterppo promote`: shall a candidate policy take the current one's place? Evidence, guards, and the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_iterppo.behaviour import action_logprobs
from lightning_iterppo.composition import load_recipe
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import LogDataError, RunDirectoryError
from lightning_iterppo.estimation import quiet_loop
from lightning_iterppo.evaluation.comparison import Comparison, of_outcomes
from lightning_iterppo.evaluation.guards import FluencyLimits, Gain, Guard, Said, fluency, reward_hacking
from lightning_iterppo.evaluation.languages import language_guard
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.judging import RESPONSES, judge, usable_logs
from lightning_iterppo.loading import policy_directory
from lightning_iterppo.logged_policy import UsableLogs, check_tokens, usable
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import POLICY, REFERENCE
from lightning_iterppo.models.tree import TokenTree
from lightning_iterppo.operations import load_policy
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.snapshot import load_reference

PROMOTION = "promotion.json"
#: Logged states in which the text is compared.
STATES = 256


@dataclass(frozen=True)
class Gate:
    """What a candidate must show.

    Args:
        probability: of being better than the current policy, at least.
        regret: expected regret of deploying it, in units of the return, at most.
        fluency: how far its text may go from the reference's.
    """

    probability: float = 0.9
    regret: float = 0.02
    fluency: FluencyLimits = field(default_factory=FluencyLimits)


@dataclass(frozen=True)
class Evidence:
    """What candidate and current policy were compared by.

    Args:
        kind: ``off-policy`` or ``fresh``.
        comparison: None where the logs cannot tell.
        figures: of either policy.
        reasons: why they cannot tell.
        states: conversations in whose states the text is compared.
        gain: of the candidate over the current policy, as the guard against reward hacking takes it; None where it
            is not known.
        candidate_outcomes: of the candidate's own fresh conversations.
    """

    kind: str
    comparison: Comparison | None
    figures: dict[str, Any]
    reasons: list[str]
    states: list[Conversation]
    gain: Gain | None
    candidate_outcomes: list[float] = field(default_factory=list)


def promote(
    run: Path,
    *,
    candidate: Path | None,
    current: Path | None,
    data: list[Path],
    fresh: list[tuple[Path, Path]],
    reference: Path | None,
    gate: Gate,
) -> dict[str, Any]:
    """Decides, and writes the decision and its evidence to ``RUN/promotion.json``.

    Args:
        run: whose recipe, summary and checkpoints are used.
        candidate: a policy; None is that of the newest checkpoint.
        current: the policy that it is compared to; None is that of the checkpoint before or, before the first, the one
            that the run started from. Where there is none, ``data`` needs it, and ``fresh`` leaves what it was out.
        data: logs to compare them by, off-policy; empty with ``fresh``.
        fresh: pairs of files, conversations of the candidate and of the current policy.
        reference: the policy whose text is the measure; None is the run's own, as its last state keeps it.
        gate: thresholds.

    Raises:
        RunDirectoryError: there is no such run or policy.
        LogFormatError: a line of a file is not a conversation.
        LogDataError: no outcome is known, or another model made the logs.
    """
    directory = RunDirectory.open(run)
    config = load_recipe(directory.recipe)
    chosen, replaced = _policies(directory, candidate, current)
    if replaced is None and data:
        raise RunDirectoryError(f"{run} has no checkpoint before {chosen}: say which policy with --current DIR")
    read = read_conversations(data) if data else []
    pairs = [(read_conversations(one), read_conversations(other)) for one, other in fresh]
    # Before anything is loaded: either may find that there is nothing to compare.
    logs = usable_logs(read) if data else usable(read)
    seen = _fresh(pairs) if pairs else None
    loop = quiet_loop(config)
    with loop.running():
        loop.tools.begin("score", unit="policies")
        evidence = seen or _off_policy(loop, config, [p for p in (chosen, replaced) if p is not None], logs, read)
        guards = [_hacking(directory, chosen, replaced, evidence)]
        load_policy(loop.language_model, chosen, option="--candidate")
        guards += _fluency(loop, config, directory, evidence.states, reference, gate.fluency)
        loop.tools.begin("done")
    reasons = _against(evidence, guards, gate)
    comparison = evidence.comparison
    decision = {
        "schema": 1,
        "decision": "keep" if reasons else "promote",
        "reasons": reasons,
        "candidate": str(chosen),
        "current": None if replaced is None else str(replaced),
        "verdict": "cannot tell" if comparison is None else "estimated",
        **(dict.fromkeys(Comparison.__dataclass_fields__) if comparison is None else comparison.to_json()),
        "evidence": {
            "kind": evidence.kind,
            "files": [str(file) for file in (data or [each for pair in fresh for each in pair])],
            "reasons": evidence.reasons,
            **evidence.figures,
        },
        "guards": [guard.to_json() for guard in guards],
        "thresholds": {"probability": gate.probability, "regret": gate.regret, **asdict(gate.fluency)},
    }
    write_json_atomically(run / PROMOTION, decision)
    return decision


def _policies(run: RunDirectory, candidate: Path | None, current: Path | None) -> tuple[Path, Path | None]:
    """The two policies' directories; None where nobody says which is the current one."""
    kept = sorted(p for p in (run.path / "checkpoints").glob("iteration-*") if (p / "policy").is_dir())
    if candidate is None and not kept:
        raise RunDirectoryError(f"{run.path} has no checkpoint yet: say which policy with --candidate DIR")
    chosen = policy_directory(candidate or kept[-1])
    if current is not None:
        return chosen, policy_directory(current)
    resolved = [p.resolve() for p in kept]
    place = resolved.index(chosen.resolve().parent) if chosen.resolve().parent in resolved else None
    if place:
        return chosen, kept[place - 1] / "policy"
    start = _start(run) if _is_after(run, 0, chosen) else None
    return chosen, start if start is not None and start.is_dir() else None


def _start(run: RunDirectory) -> Path | None:
    """The policy that a run began with, if it was another run's."""
    start = run.read_summary().start
    return None if start is None else Path(start)


# -- evidence ----------------------------------------------------------------------------------------------------------


def _off_policy(
    loop: IterativePPOLoop,
    config: Recipe,
    places: Sequence[Path],
    logs: UsableLogs,
    conversations: list[Conversation],
) -> Evidence:
    """Both policies' doubly robust estimates on the same bootstrap samples of the same logs."""
    check_tokens(logs.conversations, loop.renderer)
    found = []
    for place, option in zip(places, ("--candidate", "--current"), strict=True):
        load_policy(loop.language_model, place, option=option)
        found.append(judge(loop, config, logs, RESPONSES).value)
    new, old = found
    reasons = [
        f"these logs cannot tell of the {which}: {reason}"
        for which, value in (("candidate", new), ("current policy", old))
        for reason in value.reasons
    ]
    comparison = gain = None
    if new.sampled is not None and old.sampled is not None:
        differences = new.sampled - old.sampled
        comparison = Comparison.of_draws(differences)
        gain = Gain.of_draws(differences, _chosen_turns(logs.conversations))
    figures = {
        "candidate": new.to_json(),
        "current": old.to_json(),
        "conversations": len(logs.conversations),
        "censored": logs.censored,
        "unknown_behaviour": logs.unknown_behaviour,
    }
    return Evidence("off-policy", comparison, figures, reasons, conversations, gain)


def _fresh(pairs: Sequence[tuple[list[Conversation], list[Conversation]]]) -> Evidence:
    sides = [[c for pair in pairs for c in pair[side]] for side in (0, 1)]
    outcomes = [[c.outcome for c in side if c.outcome is not None] for side in sides]
    for name, found in zip(("candidate", "current policy"), outcomes, strict=True):
        if not found:
            raise LogDataError(f"no outcome of the {name}'s conversations is known, so there is nothing to compare")
    figures = {
        name: {**asdict(outcome_rate(side)), "censored": len(side) - len(found)}
        for name, side, found in zip(("candidate", "current"), sides, outcomes, strict=True)
    }
    candidate, current = outcomes
    gain = Gain.of_outcomes("fresh", current, candidate, _chosen_turns(sides[0]))
    return Evidence("fresh", of_outcomes(candidate, current), figures, [], sides[1], gain, candidate)


def _chosen_turns(conversations: Sequence[Conversation]) -> float:
    """Turns a conversation in which the agent chose; all of them where no suggestion says who did."""
    suggested = sum(turn.suggestion is not None for c in conversations for turn in c.turns)
    return (suggested or sum(len(c.turns) for c in conversations)) / len(conversations)


# -- guards ------------------------------------------------------------------------------------------------------------


def _hacking(run: RunDirectory, candidate: Path, current: Path | None, evidence: Evidence) -> Guard:
    """What Q promised against the run's own conversations, and for the last improvement against the evidence."""
    iterations = run.read_summary().iterations
    outcomes: list[list[float]] = []
    for record in iterations:
        file = run.conversations(record.iteration)
        if not file.is_file():
            break
        outcomes.append([c.outcome for c in read_conversations(file) if c.outcome is not None])
    last = len(iterations) - 1
    newest = _is_after(run, last, candidate)
    if newest and evidence.candidate_outcomes and len(outcomes) == len(iterations):
        outcomes.append(evidence.candidate_outcomes)
    # A warm start that no checkpoint keeps is taken to be the current policy.
    start = _start(run)
    if last > 0:
        before = _is_after(run, last - 1, current)
    elif start is None or current is None:
        before = not _is_after(run, 0, current)
    else:
        before = current.resolve() == start.resolve()
    if newest and last == 0 and current is None:
        unseen = "say --current DIR, the policy that its only improvement began with"
    elif not (newest and before):
        unseen = "the policies compared are not those before and after the run's last improvement"
    else:
        unseen = "the conversations compared cannot tell of the last one"
    promised = [record.policy.get("reward_gain") for record in iterations]
    known = newest and before and current is not None
    return reward_hacking(promised, outcomes, evidence.gain if known else None, unseen)


def _is_after(run: RunDirectory, iteration: int, policy: Path | None) -> bool:
    """Whether a policy is the one that a run had after an iteration."""
    return policy is not None and policy.resolve() == (run.checkpoint(iteration) / "policy").resolve()


def _fluency(
    loop: IterativePPOLoop,
    config: Recipe,
    run: RunDirectory,
    conversations: list[Conversation],
    reference: Path | None,
    limits: FluencyLimits,
) -> list[Guard]:
    """The loop's policy and the reference, one response each in the same logged states."""
    model = loop.language_model
    if reference is not None:
        load_policy(model, reference, variant=REFERENCE, option="--reference")
    else:
        state = run.load_state()
        if state is None or not load_reference(state["modules"], model):
            return [Guard("fluency", None, "this run kept no reference policy: say --reference DIR", {})]
    some: list[Conversation] = []
    turns = 0
    for conversation in conversations:
        if turns < STATES:
            some.append(conversation)
            turns += len(conversation.turns)
    policy, usual = _said(loop, config, some, POLICY), _said(loop, config, some, REFERENCE)
    return [*fluency(policy, usual, limits), language_guard(policy.texts, usual.texts, limits.language_shift)]


def _said(loop: IterativePPOLoop, config: Recipe, conversations: Sequence[Conversation], variant: str) -> Said:
    """What a variant says in every state of conversations, and how likely that is for itself and for the reference."""
    model, renderer = loop.language_model, loop.renderer
    rendered = [renderer.render(conversation) for conversation in conversations]
    engine = LocalEngine(
        model,
        stop_token_id=renderer.stop_token_id,
        seed=loop.tools.seed_of("fluency"),
        rows=max(loop.settings.batch, 1),
        variant=variant,
    )
    prompts = [each.tree.path(state) for each in rendered for state in each.states]
    responses = engine.generate(prompts, Sampling(1.0, 1.0, config.sampling.max_new_tokens))
    waiting = iter(responses)
    trees = []
    for each in rendered:
        tree = TokenTree([replace(segment, action=False) for segment in each.tree.segments])
        for state in each.states:
            tree.add(next(waiting).token_ids, state, action=True)
        trees.append(tree)
    found = action_logprobs(model, trees, REFERENCE, rows=max(8, config.critic.batch_conversations))
    return Said(
        texts=[renderer.decode(response.token_ids) for response in responses],
        tokens=[len(response.token_ids) for response in responses],
        logprobs=[sum(response.logprobs) for response in responses],
        reference_logprobs=[value for of_tree in found for value in of_tree],
    )


def _against(evidence: Evidence, guards: Sequence[Guard], gate: Gate) -> list[str]:
    """Everything that speaks against a promotion."""
    found = list(evidence.reasons)
    comparison = evidence.comparison
    if comparison is not None and comparison.probability_better < gate.probability:
        found.append(
            f"the probability that the candidate is better is {comparison.probability_better:.3f}, under "
            f"{gate.probability:g}"
        )
    if comparison is not None and comparison.expected_regret > gate.regret:
        found.append(f"the expected regret is {comparison.expected_regret:.4f}, over {gate.regret:g}")
    return found + [f"guard {guard.name}: {guard.says}" for guard in guards if guard.passed is False]
