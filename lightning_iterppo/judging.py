"""What logs say of the policy that a loop holds: nothing was trained on them, and nobody has to talk to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.turns import split_conversations
from lightning_iterppo.errors import LogDataError
from lightning_iterppo.evaluation.policy_value import PolicyValue, ValueSettings, policy_value
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.logged_policy import UsableLogs, check_tokens, read_logs, usable
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.rendering import ChatRenderer

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

    def to_json(self) -> dict[str, Any]:
        """What was estimated, or why nothing was, and the logs' own figures."""
        logs = self.logs
        return {
            **self.value.to_json(),
            "logs": {
                "conversations": len(logs.conversations),
                "censored": logs.censored,
                "unknown_behaviour": logs.unknown_behaviour,
                "turns": logs.turns,
                "chosen_turns": logs.chosen_turns,
                "return_mean": outcome_rate(logs.conversations).return_mean if logs.conversations else None,
            },
        }


def usable_logs(conversations: Sequence[Conversation]) -> UsableLogs:
    """What of conversations can be weighted, if `check_tokens` finds that this model made them.

    Raises:
        LogDataError: no outcome is known.
    """
    logs = usable(conversations)
    if logs.censored == len(conversations):
        raise LogDataError("none of the conversations has a known outcome, so there is nothing to estimate from")
    return logs


def sampled_otherwise(config: Recipe) -> str | None:
    """Why the policy of a recipe is not the one that could be judged; None if it is."""
    if (config.sampling.temperature, config.sampling.top_p) == (1.0, 1.0):
        return None
    return (
        f"the recipe samples at temperature {config.sampling.temperature:g} and top_p {config.sampling.top_p:g}, "
        "but what is estimated is the policy at 1 and 1"
    )


def judge(loop: IterativePPOLoop, config: Recipe, logs: UsableLogs, responses: int) -> Judged:
    """The value of the loop's policy as it is."""
    settings = ValueSettings(gamma=config.critic.gamma)
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


def at_the_end(
    conversations: Sequence[Conversation], config: Recipe, renderer: ChatRenderer
) -> tuple[Sequence[Conversation], Callable[[IterativePPOLoop], dict[str, Any]] | None]:
    """Of the logs of a run without a customer, those to learn from, and what judges its policy by the others.

    Whether the others can judge is found now, and not after the training. Where they cannot, all logs are learnt from,
    and the figures say why.
    """
    fraction = config.loop.judge_fraction
    if not 0 < round(len(conversations) * fraction) < len(conversations):
        return conversations, None
    train, held = split_conversations(conversations, fraction, config.seed)
    logs = usable(held)
    reason = sampled_otherwise(config) or (None if logs.chosen_turns else _NOT_WEIGHTED)
    try:
        check_tokens(logs.conversations, renderer)
    except LogDataError as error:
        reason = str(error)
    if reason is not None:
        nothing = Judged(PolicyValue.unknown([reason]), UsableLogs([], 0, 0)).to_json()
        return conversations, lambda loop: nothing
    return train, lambda loop: judge(loop, config, logs, RESPONSES).to_json()
