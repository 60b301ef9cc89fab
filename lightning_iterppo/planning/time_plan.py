"""How long an iteration takes: its passes, counted, times their operations, over the speed of a device."""

from __future__ import annotations

from lightning_iterppo.config import Recipe
from lightning_iterppo.improvement import MEASURED
from lightning_iterppo.planning.memory_plan import Devices
from lightning_iterppo.planning.rehearsal import Reading, Rehearsed, Step, Work
from lightning_iterppo.planning.speed import Speed


def seconds_of(
    found: Rehearsed, recipe: Recipe, work: Work, devices: Devices, speed: Speed, *, held: int | None = None
) -> dict[str, float]:
    """Seconds of each phase of an iteration. What processes tell each other is not counted.

    Args:
        found: what the rehearsal found.
        recipe: with a process's own batches, see `Devices.own`.
        work: what conversations are like; each is taken to be like that.
        devices: who shares the work.
        speed: of one of them.
        held: conversations on which Q is measured; by default as many as the recipe holds out.
    """
    logs = int(recipe.logs.get("conversations", 0)) if recipe.logs else 0
    talked = recipe.loop.conversations if recipe.customer else logs
    newest = devices.share(talked)
    reading = max(8, recipe.policy.batch_conversations)

    def read(what: Reading, conversations: float, rows: int) -> float:
        return conversations / rows * what.flops / speed.reading

    def train(what: Step, conversations: float, rows: int, rate: float) -> float:
        return conversations / rows * (what.forward + what.backward) / rate

    def prompts(conversations: float) -> float:
        return read(found.spoken, conversations, recipe.loop.batch)

    def speak(responses: float) -> float:
        return responses / min(recipe.loop.batch, max(1.0, responses)) * work.response * speed.speaking

    seconds = {}
    if recipe.customer:
        seconds["collect"] = prompts(newest) + speak(newest * work.turns)
    others = devices.share(logs) if recipe.critic.use_logs and recipe.customer else 0
    rows = recipe.critic.batch_conversations
    solving = recipe.critic.solve_head or recipe.critic.epochs == 0
    evaluate = read(found.logs, newest + others, rows) if solving else 0.0
    if found.critic is not None:
        kept = newest * recipe.critic.validation_fraction if held is None else held
        epoch = train(found.critic, newest - kept + others, rows, speed.fitting) + read(found.logs, kept, rows)
        evaluate += recipe.critic.epochs * epoch
    seconds["evaluate"] = evaluate

    def judged(conversations: float, *, anchored: bool) -> float:
        """Sampled, scored and prepared."""
        passes = 1 + (not anchored) + (recipe.policy.kl_reference_coefficient > 0)
        sampled = prompts(conversations) + speak(conversations * work.turns * recipe.policy.samples_per_state)
        prepared = passes * conversations / reading * found.prepare.flops / speed.preparing
        return sampled + read(found.first, conversations, reading) + prepared

    states = devices.share(min(recipe.policy.conversations_per_round, talked or recipe.policy.conversations_per_round))
    fitted = recipe.policy.ppo_epochs * train(found.policy, states, recipe.policy.batch_conversations, speed.training)
    improve = sum(judged(states, anchored=number == 0) + fitted for number in range(recipe.policy.rounds))
    measured = min(states, devices.share(MEASURED))
    seconds["improve"] = improve + judged(measured, anchored=False)
    return seconds
