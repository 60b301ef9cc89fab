"""The warm-start phase: the policy imitates what people sent in the logs."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.trees import LoggedTree
from lightning_iterppo.data.turns import TurnDataModule
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.warm_start import WarmStart


def imitate(
    warm_start: WarmStart,
    logs: Sequence[Conversation],
    renderer: ChatRenderer,
    settings: LoopSettings,
    tools: PhaseTools,
) -> list[LoggedTree]:
    """Fits the policy to what people sent, not to suggestions that they put aside, however the conversations ended.

    Args:
        warm_start: the module that learns.
        logs: people's conversations.
        renderer: the model's chat template.
        settings: epochs and batches.
        tools: Trainers and progress.

    Returns:
        The logs as they were trained on, with what frozen layers made of them, as far as that is kept.
    """
    data = TurnDataModule(
        [conversation.as_sent() for conversation in logs],
        renderer=renderer,
        batch_size=settings.warm_start_batch,
        seed=tools.seed,
        unknown_outcomes=True,
    )
    tools.fit(warm_start, data, settings.warm_start_epochs)
    return data.train_trees.kept
