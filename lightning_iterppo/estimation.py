"""`iterppo estimate`: what a policy would earn, from logs that other policies made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_iterppo.build import build_loop
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import ConfigError, LogDataError
from lightning_iterppo.evaluation.policy_value import PolicyValue, ValueSettings, policy_value
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.logged_policy import UsableLogs, check_tokens, read_logs, usable
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.operations import load_policy, single_process, without_logs

#: Fresh responses in every logged state, for the mean of Q.
RESPONSES = 4
_NOT_WEIGHTED = (
    "no turn has a suggestion with known log-probabilities, so nothing says whether the policy would do the same"
)


@dataclass(frozen=True)
class Judged:
    """A policy's value, and what of the logs was used."""

    value: PolicyValue
    logs: UsableLogs


def estimate(config: Recipe, policy: Path | None, data: list[Path], responses: int = RESPONSES) -> dict[str, Any]:
    """The value of a policy from logs, in one process.

    Args:
        config: the recipe whose model made the logs.
        policy: the policy; None is the recipe's model as it is.
        data: files of conversations.
        responses: fresh ones in every logged state.

    Raises:
        ConfigError: the recipe samples at another temperature than 1.
        LogFormatError: a line of a file is not a conversation.
        LogDataError: no outcome is known, or another model made the logs.
        RunDirectoryError: there is no such policy.
    """
    conversations = read_conversations(data)
    loop = quiet_loop(config)
    with loop.running():
        loop.tools.begin("score", len(conversations), "conversations")
        if policy is not None:
            load_policy(loop.language_model, policy)
        judged = judge(loop, config, usable_logs(conversations, loop), responses)
        loop.tools.begin("done")
    logs = judged.logs
    rate = outcome_rate(logs.conversations) if logs.conversations else None
    return {
        "policy": None if policy is None else str(policy),
        "gamma": config.critic.gamma,
        **judged.value.to_json(),
        "logs": {
            "conversations": len(logs.conversations),
            "censored": logs.censored,
            "unknown_behaviour": logs.unknown_behaviour,
            "turns": logs.turns,
            "chosen_turns": logs.chosen_turns,
            "return_mean": None if rate is None else rate.return_mean,
        },
    }


def quiet_loop(config: Recipe) -> IterativePPOLoop:
    """The parts of a recipe in one process, with nobody to talk to.

    Raises:
        ConfigError: the recipe samples at another temperature than 1.
    """
    if (config.sampling.temperature, config.sampling.top_p) != (1.0, 1.0):
        raise ConfigError(
            f"the recipe samples at temperature {config.sampling.temperature:g} and top_p {config.sampling.top_p:g}, "
            "but what is estimated is the policy at 1 and 1: add sampling.temperature=1 sampling.top_p=1"
        )
    single_process(config)
    return build_loop(without_logs(config), kept=False, talks=False)


def usable_logs(conversations: list[Conversation], loop: IterativePPOLoop) -> UsableLogs:
    """What of conversations can be weighted.

    Raises:
        LogDataError: no outcome is known, or another model made them.
    """
    logs = usable(conversations)
    if logs.censored == len(conversations):
        raise LogDataError("none of the conversations has a known outcome, so there is nothing to estimate from")
    check_tokens(logs.conversations, loop.renderer)
    return logs


def judge(loop: IterativePPOLoop, config: Recipe, logs: UsableLogs, responses: int) -> Judged:
    """The value of the loop's policy as it is."""
    settings = ValueSettings(gamma=config.critic.gamma, prior=4 * config.critic.head_prior)
    if not logs.conversations or not logs.chosen_turns:
        return Judged(PolicyValue.unknown([_NOT_WEIGHTED]), logs)
    tables = read_logs(
        loop.language_model,
        loop.critic,
        loop.renderer,
        logs.conversations,
        engine=loop.talker.engine(loop.tools.seed_of("estimate"), keep=False),
        max_new_tokens=config.sampling.max_new_tokens,
        responses=responses,
        rows=max(8, config.critic.batch_conversations),
    )
    return Judged(policy_value(*tables, settings), logs)
