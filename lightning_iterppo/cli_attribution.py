"""`iterppo attribute`: which message won or lost a conversation, from its scores."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lightning_iterppo import cli_output as output
from lightning_iterppo.cli_commands import Job, need_files, need_fresh_output
from lightning_iterppo.errors import ConfigError


def attribute(arguments: argparse.Namespace, job: Job) -> int:
    """The table, and the plot where it is asked for."""
    # Imported here: reading logs needs numpy, and `--help` nothing.
    from lightning_iterppo.data.conversation_file import ConversationFile
    from lightning_iterppo.evaluation import attribution

    need_files([arguments.data, arguments.scores])
    if arguments.output is not None:
        need_fresh_output(arguments.output)
        attribution.plot_format(arguments.output)
    scores = attribution.read_scores(arguments.scores, arguments.id)
    conversation = next((c for c in ConversationFile([arguments.data]) if c.id == arguments.id), None)
    if conversation is None:
        raise ConfigError(f"{arguments.data} has no conversation {arguments.id!r}")
    steps = attribution.attribute(conversation, scores)
    outcome = "unknown" if conversation.outcome is None else f"{conversation.outcome:g}"
    if arguments.output is not None:
        attribution.draw(steps, f"{conversation.id}, outcome {outcome}", arguments.output)
    if arguments.json:
        output.say_json(
            {
                "id": conversation.id,
                "outcome": conversation.outcome,
                "messages": [{**asdict(step), "change": step.change} for step in steps],
            }
        )
        return 0
    output.say(attribution.markdown(steps), "", f"outcome: {outcome}")
    if arguments.output is not None:
        output.say(f"The plot is in {arguments.output}")
    return 0
