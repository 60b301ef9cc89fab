"""How much memory one process of a run holds at most: moment by moment, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from lightning_iterppo.config import Recipe
from lightning_iterppo.planning.rehearsal import Rehearsed, Step, Work

Strategy = Literal["one", "ddp", "fsdp", "deepspeed"]

PROCESS: Final = "process without a model"
WEIGHTS: Final = "weights"
VARIANTS: Final = "policy, anchor, reference, critic"
GRADIENTS: Final = "gradients"
MOMENTS: Final = "Adam's moments"
BUCKETS: Final = "gradients on their way to other processes"
WORKING: Final = "activations and working memory"
FEATURES: Final = "kept features of frozen layers"
CACHE: Final = "keys and values"
#: In the order of the table.
PARTS: Final = (PROCESS, WEIGHTS, VARIANTS, GRADIENTS, MOMENTS, BUCKETS, WORKING, FEATURES, CACHE)

_ROOM = 64  # slots of the cache come in multiples of this


@dataclass(frozen=True)
class Devices:
    """Who shares the work.

    Args:
        count: processes, a device each.
        strategy: ``one``, ``ddp``; ``fsdp`` has all weights in shards while a step of training is computed, and those
            of one variant whole otherwise; ``deepspeed`` is planned as ZeRO's stage 2.
    """

    count: int = 1
    strategy: Strategy = "one"

    def shard(self, size: int, *, weights: bool = False) -> int:
        """What one process has of something that the strategy divides."""
        divides = self.strategy == "fsdp" or (self.strategy == "deepspeed" and not weights)
        return -(-size // self.count) if divides else size

    def share(self, count: int) -> int:
        """A process's part of so many things."""
        return -(-count // self.count)

    def own(self, recipe: Recipe) -> Recipe:
        """The recipe with what one process has of its batches, for the readings below."""
        imitation, critic, policy = recipe.warm_start, recipe.critic, recipe.policy
        return replace(
            recipe,
            warm_start=replace(imitation, batch_conversations=self.share(imitation.batch_conversations)),
            critic=replace(critic, batch_conversations=self.share(critic.batch_conversations)),
            policy=replace(policy, batch_conversations=self.share(policy.batch_conversations)),
        )


def moments_of(
    found: Rehearsed, recipe: Recipe, work: Work, devices: Devices, *, process: int
) -> dict[str, dict[str, int]]:
    """Bytes of every part at every moment of a run that could be its largest.

    Args:
        found: what the rehearsal found.
        recipe: with a process's own batches, see `Devices.own`.
        work: what conversations are like.
        devices: who shares the work.
        process: what a process takes without a model.
    """
    lora = recipe.model.adaptation.kind != "full"
    reference = recipe.policy.kl_reference_coefficient > 0 or recipe.policy.log_actions
    logs = int(recipe.logs.get("conversations", 0)) if recipe.logs else 0
    newest = recipe.loop.conversations if recipe.customer else logs

    def moment(
        copies: int, extra: dict[str, int], step: Step | None = None, *, training: bool = False
    ) -> dict[str, int]:
        """``copies`` are sets of trained weights beside the one in use; of adapters there always are four."""
        held = found.weights, found.variant * (4 if lora else copies)
        shards = devices.shard(held[0], weights=True), devices.shard(held[1], weights=True)
        if training:
            held = shards
        elif devices.strategy == "fsdp":
            # Put together beside their shards. Of all weights' sets, only that in use.
            held = held[0] + shards[0], held[1] if lora else shards[1]
        parts = {PROCESS: process, WEIGHTS: held[0], VARIANTS: held[1]}
        if step is not None:
            parts[GRADIENTS] = devices.shard(step.gradients)
            # DeepSpeed's optimiser trains a copy of its part of the weights.
            copy = step.gradients if devices.strategy == "deepspeed" else 0
            parts[MOMENTS] = devices.shard(step.moments + copy)
            if devices.count > 1:
                parts[BUCKETS] = devices.shard(step.gradients)
        return {name: size for name, size in {**parts, **extra}.items() if size}

    # While rows of the cache move, both the old and the new ones are there.
    room = -(-work.tokens // _ROOM) * _ROOM + _ROOM
    cache = 2 * recipe.loop.batch * room * found.cache
    moments = {}
    others = 1 + reference  # the critic, and the reference
    speaking = max(found.spoken.working, found.sampled.working)
    if recipe.customer:
        moments["collect"] = moment(others, {WORKING: speaking, CACHE: cache, FEATURES: logs * found.features[0]})
    # Batches are drawn anew in every pass: a process comes to see all conversations.
    known = newest + (logs if recipe.critic.use_logs and recipe.customer else 0)
    fitted = {WORKING: found.logs.working, FEATURES: known * found.features[0]}
    if found.critic is None:
        moments["fit Q"] = moment(others, fitted)
    else:
        best = devices.shard(found.variant, weights=True)  # the best epoch's weights
        moments["fit Q"] = moment(others, {**fitted, WORKING: found.critic.working}, found.critic)
        moments["fit Q"][VARIANTS] = moments["fit Q"].get(VARIANTS, 0) + best
    round_ = min(recipe.policy.conversations_per_round, newest or 10**9)
    states = devices.share(round_)
    prompts = states * work.turns * recipe.policy.samples_per_state
    rows = min(recipe.loop.batch, prompts)
    read = {FEATURES: states * found.features[1]}
    cache = 2 * rows * room * found.cache
    moments["sample"] = moment(others + 1, {WORKING: speaking, CACHE: cache}, found.policy)
    moments["score"] = moment(
        others + 1, {WORKING: max(found.first.working, found.prepare.working), **read}, found.policy
    )
    read = {FEATURES: round_ * found.features[1]}
    moments["train"] = moment(others + 1, {WORKING: found.policy.working, **read}, found.policy, training=True)
    if found.imitation is not None:
        kept = {FEATURES: logs * found.features[0]}
        moments["imitate"] = moment(0, {WORKING: found.imitation.working, **kept}, found.imitation, training=True)
    return moments


def largest(moments: dict[str, dict[str, int]]) -> str:
    """The moment at which most is held."""
    return max(moments, key=lambda name: sum(moments[name].values()))
