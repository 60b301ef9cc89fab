"""What a loop keeps to go on after a stop, and how it takes it up again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.snapshot import load_modules, module_state
from lightning_iterppo.summary import Rate

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


def state_of(loop: IterativePPOLoop) -> dict[str, Any]:
    """Plain values and tensors only.

    Every phase makes its own optimiser and seeds its own randomness, so between phases there is neither to keep.
    """
    return {
        "finished": list(loop.finished),
        **loop.record.state_dict(),
        "evaluations": {str(k): asdict(v) for k, v in loop.evaluations.items()},
        "steps": loop.tools.steps,
        "should_stop": loop.should_stop,
        "stop_reason": loop.stop_reason,
        # Without a customer they are the logs, which a resumed run reads again.
        "conversations": [c.to_json() for c in loop.conversations] if loop.customer is not None else [],
        "earlier": [[c.to_json() for c in part] for part in loop.earlier],
        "callbacks": {callback.state_key: callback.state_dict() for callback in loop.callbacks},
        "modules": module_state(loop.language_model, loop.policy, loop.critic),
    }


def restore(loop: IterativePPOLoop, state: dict[str, Any]) -> None:
    """Takes a loop back to where `state_of` was asked."""
    loop.finished = list(state["finished"])
    loop.record.load_state_dict(state)
    loop.evaluations = {int(k): Rate.from_json(v) for k, v in state["evaluations"].items()}
    loop.tools.steps = int(state["steps"])
    loop.should_stop = bool(state["should_stop"])
    loop.stop_reason = state["stop_reason"]
    loop.conversations = [Conversation.from_json(record) for record in state["conversations"]]
    loop.earlier = [[Conversation.from_json(record) for record in part] for part in state["earlier"]]
    for callback in loop.callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    if loop.record.current is not None:  # the improvement of an iteration asks how good its critic is
        loop.critic.figures = dict(loop.record.current.critic)
    load_modules(state["modules"], loop.language_model, loop.policy, loop.critic)
    loop.critic_fit.forget()
