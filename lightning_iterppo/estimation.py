"""`iterppo estimate`: what a policy would earn, from logs that other policies made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_iterppo.build import build_loop
from lightning_iterppo.config import Recipe
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.judging import RESPONSES, judge, sampled_otherwise, usable_logs
from lightning_iterppo.logged_policy import check_tokens
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.operations import histories_cut, load_policy, single_process, without_logs


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
        LogDataError: no outcome is known, another model made the logs, or the model cannot read as much.
        RunDirectoryError: there is no such policy.
    """
    conversations = read_conversations(data)
    logs = usable_logs(conversations)  # before anything is loaded
    loop = quiet_loop(config)
    with loop.running():
        loop.tools.begin("score", len(conversations), "conversations")
        check_tokens(logs.conversations, loop.renderer)
        if policy is not None:
            load_policy(loop.language_model, policy)
        judged = judge(loop, config, logs, responses)
        loop.tools.begin("done")
    return {
        "policy": None if policy is None else str(policy),
        "gamma": config.critic.gamma,
        **judged.to_json(),
        **histories_cut(loop),
    }


def quiet_loop(config: Recipe) -> IterativePPOLoop:
    """The parts of a recipe in one process, with nobody to talk to.

    Raises:
        ConfigError: the recipe samples at another temperature than 1.
    """
    if otherwise := sampled_otherwise(config):
        raise ConfigError(f"{otherwise}: add sampling.temperature=1 sampling.top_p=1")
    single_process(config)
    return build_loop(without_logs(config), kept=False, talks=False)
