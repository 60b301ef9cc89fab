"""Micro-batches: the same step in less memory, and a size of its own choice that fits into what is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lightning_iterppo import memory, micro_batches
from lightning_iterppo.critic import QCritic
from lightning_iterppo.data.samples import ScoredTree, collate_samples
from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.memory import free_memory, memory_taken
from lightning_iterppo.micro_batches import MicroBatches, MicroBatchSize, rows_that_fit
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.tree import ROOT, TokenTree, collate_trees
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.warm_start import WarmStart

# A training step outside a Trainer has nowhere to log to.
pytestmark = pytest.mark.filterwarnings("ignore:.*self.trainer.*is not registered.*")
Make = Callable[..., LanguageModel]
Stir = Callable[..., None]
CPU = torch.device("cpu")
ROWS = 5


def the_trees() -> list[TokenTree]:
    """Rows of different lengths with different numbers of responses of different lengths."""
    trees = []
    for row in range(ROWS):
        tree = TokenTree()
        state = tree.add([3, *range(5, 7 + 3 * row)], ROOT)
        for response in range(1 + row % 3):
            tree.add([9 + row, *[11] * (row + response), 1], state, action=True)
        trees.append(tree)
    return trees


def batches(policy: PPOPolicy) -> dict[str, Any]:
    trees = the_trees()
    scored = [ScoredTree(t, [0.2 * i for i in range(n)], [0.3] * n, [True] * n) for t in trees if (n := len(t.actions))]
    tree = collate_trees(trees, pad_token_id=0)
    count = len(tree.action_rows)
    turns = TurnBatch(tree, torch.arange(count) % 2 * 1.0, torch.linspace(0.2, 1.0, count))
    policy.model.activate("policy")
    return {
        "policy": collate_samples(policy.prepare(scored), pad_token_id=0),
        "critic": turns,
        "warm_start": turns,
    }


def equal_rows() -> TurnBatch:
    """As many rows that are all alike."""
    tree = collate_trees([the_trees()[2]] * ROWS, pad_token_id=0)
    count = len(tree.action_rows)
    return TurnBatch(tree, torch.ones(count), torch.ones(count))


def make_modules(model: LanguageModel, size: MicroBatchSize) -> dict[str, Any]:
    policy = PPOPolicy(
        model, kl_coefficient=0.1, entropy_coefficient=0.1, kl_reference_coefficient=0.1, micro_batch=size
    )
    critic = QCritic(model, pooling="mean", micro_batch=size)
    for head in (policy.value_head, critic.head):
        nn.init.constant_(head.linear.weight, 0.01)
    return {"policy": policy, "critic": critic, "warm_start": WarmStart(model, micro_batch=size)}


def step(module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    module.setup("fit")
    module.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("size", [1, 2, ROWS])
def test_the_step_is_that_of_the_whole_batch(make_language_model: Make, stir: Stir, kind: str, size: int) -> None:
    model = make_language_model(kind, layers=3, top_layers=2 if kind == "lora" else None)
    stir(model, "policy", scale=0.05)
    model.copy("policy", "critic")
    whole, parts = make_modules(model, None), make_modules(model, size)
    given = batches(whole["policy"])
    stir(model, "policy", scale=0.02)  # it has moved on from what sampled
    for name, batch in given.items():
        loss, gradients = step(whole[name], batch)
        found, found_gradients = step(parts[name], batch)
        torch.testing.assert_close(found, loss, atol=1e-5, rtol=0)
        assert found_gradients.keys() == gradients.keys()
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
        for key, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[key], gradient, atol=1e-5, rtol=1e-4)
    assert parts["policy"]._clipped == pytest.approx(whole["policy"]._clipped, abs=1e-6)


def held_bytes(module: Any, batch: Any) -> int:
    """What the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.setup("fit")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.training_step(batch, 0)
    return sum(kept.values())


def test_only_one_group_is_held(make_language_model: Make) -> None:
    model = make_language_model("lora", fold=False)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    given = batches(PPOPolicy(model))["policy"]
    whole, alone = (held_bytes(PPOPolicy(model, micro_batch=size), given) - weights for size in (None, 1))
    assert whole > 0
    assert alone < whole / 2


@pytest.mark.parametrize("size", [0, -1, "all"])
def test_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(ValueError, match="micro_batch must be at least 1, auto or None"):
        MicroBatches(size)


# -- the automatic size ----------------------------------------------------------------------------------------------


def test_more_memory_never_takes_fewer_rows_and_there_is_always_one() -> None:
    measured = [(100, 5_000_000), (400, 12_000_000)]
    sizes = [rows_that_fit(budget, measured, width=100, rows=64) for budget in range(0, 250_000_000, 500_000)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 64
    assert rows_that_fit(-1.0, measured, width=100, rows=64) == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_chosen_fits_whatever_a_step_is_made_of(seed: int) -> None:
    """A step is some moments, each of which takes something fixed and something for every token."""
    generator = torch.Generator().manual_seed(seed)
    moments = [(int(fixed), int(each)) for fixed, each in torch.randint(0, 1000, (4, 2), generator=generator).tolist()]

    def taken(tokens: int) -> int:
        return max(fixed * 100 + each * tokens for fixed, each in moments)

    measured = [(3 * 50, taken(3 * 50)), (8 * 50, taken(8 * 50))]
    for budget in range(100_000, 3_000_000, 50_000):
        for width in (20, 50, 60):
            rows = rows_that_fit(budget, measured, width, rows=64)
            assert rows == 1 or taken(rows * width) <= budget


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A device where a step takes some fixed bytes, and 3 for every token; ``free`` is what is free."""
    state = {"free": 1e9, "fixed": 10.0, "measured": 0.0}

    def taken(device: torch.device, work: Callable[[], object]) -> int:
        tokens: list[int] = []
        original = LanguageModel.hidden

        def hidden(self: LanguageModel, batch: Any, **options: Any) -> Tensor:
            tokens.append(sum(len(tree) for tree in batch.trees))
            return original(self, batch, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanguageModel, "hidden", hidden)
            work()
        state["measured"] += 1
        return int(state["fixed"]) + 3 * tokens[0]

    monkeypatch.setattr(micro_batches, "memory_taken", taken)
    monkeypatch.setattr(micro_batches, "free_memory", lambda device: int(state["free"]))
    return state


def groups_of(module: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the groups of a step."""
    sizes: list[int] = []
    original = type(module).__dict__["loss"]

    def loss(self: Any, group: TurnBatch) -> Tensor:
        sizes.append(len(group.tree.trees))
        found: Tensor = original(self, group)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(type(module), "loss", loss)
        module.training_step(batch, 0)
    return sizes


def test_auto_takes_what_fits(
    make_language_model: Make, pretended: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_language_model("lora", rank=1)
    module = WarmStart(model, micro_batch="auto")
    module.setup("fit")
    batch = batches(PPOPolicy(model))["warm_start"]
    width = batch.tree.input_ids.shape[1]
    beside = 3 * 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert groups_of(module, batch, monkeypatch) == [1, ROWS], "one row says that all fit"
    sizes = []
    for rows in (0.5, 1, 2.1, 3.9, 5.1):
        pretended["free"] = (beside + rows * (10 + 3 * width)) / micro_batches.SHARE + 1
        sizes.append(groups_of(module, batch, monkeypatch))
    assert sizes == [[1] * 5, [1] * 5, [2, 2, 1], [3, 2], [5]]
    assert pretended["measured"] == 1


def test_auto_measures_larger_steps_that_are_known_to_fit(
    make_language_model: Make, pretended: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = WarmStart(make_language_model("lora", rank=1), micro_batch="auto")
    module.setup("fit")
    batch = equal_rows()
    width = batch.tree.input_ids.shape[1]
    beside = 3 * 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    pretended["fixed"] = fixed = 30 * width  # ten times what a row takes
    pretended["free"] = (beside + fixed + 4.5 * 3 * width) / micro_batches.SHARE
    # One row and all that is fixed take 33: two such would not fit into 43.5, nor would larger steps be measured.
    assert groups_of(module, batch, monkeypatch) == [1] + [1] * ROWS
    module.micro_batches = MicroBatches("auto")
    pretended["fixed"] = fixed = 3 * width
    pretended["free"] = (beside + fixed + 4.5 * 3 * width) / micro_batches.SHARE
    # Of 16.5, one row takes 6: two fit. Two take 9: three fit. Three take 12: four fit. Four take 15: five do not.
    assert groups_of(module, batch, monkeypatch) == [1, 2, 3, 4, 4, 1]


def test_auto_measures_again_where_rows_are_longer(make_language_model: Make, pretended: dict[str, float]) -> None:
    module = WarmStart(make_language_model("lora"), micro_batch="auto")
    module.setup("fit")
    trees = the_trees()

    def take(*chosen: int) -> None:
        tree = collate_trees([trees[index] for index in chosen], pad_token_id=0)
        count = len(tree.action_rows)
        module.training_step(TurnBatch(tree, torch.zeros(count), torch.ones(count)), 0)

    seen = []
    for chosen in ((0,), (0, 1), (1, 1), (1, 0), (1, 2)):
        take(*chosen)
        seen.append(pretended["measured"])
    assert seen == [0, 1, 1, 1, 2], "a single row cannot be cut"


@pytest.mark.parametrize("free", [1.0, 1e12])
def test_a_run_with_auto_learns_what_a_plain_run_learns(
    make_loop: Callable[..., IterativePPOLoop], pretended: dict[str, float], free: float
) -> None:
    pretended["free"] = free
    found = []
    sizes: tuple[MicroBatchSize, MicroBatchSize] = (None, "auto")
    for size in sizes:
        loop = make_loop("lora", layers=2, top_layers=1, settings={"iterations": 1})
        for module in (loop.policy, loop.critic, loop.warm_start):
            assert module is not None
            module.micro_batches = MicroBatches(size)
        loop.run()
        found.append(torch.cat([t.flatten() for t in loop.language_model.variant_tensors("policy").values()]))
    assert pretended["measured"] > 0
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=0)


def test_auto_on_this_machine(make_language_model: Make) -> None:
    model = make_language_model("lora")
    auto, whole = (WarmStart(model, micro_batch=size) for size in ("auto", None))
    batch = batches(PPOPolicy(model))["warm_start"]
    torch.testing.assert_close(step(auto, batch), step(whole, batch), atol=1e-5, rtol=1e-4)
    assert len(auto.micro_batches._measured) == 1


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_that_is_taken_and_free_on_the_processor() -> None:
    megabytes = 64
    found = memory_taken(CPU, lambda: torch.ones(megabytes * 2**18).sum())
    assert 0.9 * megabytes < found / 2**20 < 2 * megabytes
    assert free_memory(CPU) > 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    names: tuple[Literal["memory.max", "memory.limit_in_bytes"], str] = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    for name, text in (*zip(names, ("5000", "3000"), strict=True), ("memory.stat", "anon 2500\ninactive_file 500\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CONTAINERS", [(str(tmp_path / "nowhere"), *names), (str(tmp_path), *names)])
    assert free_memory(CPU) == 2500
    (tmp_path / names[0]).write_text("max\n" if version == 2 else str(2**62))
    assert free_memory(CPU) > 2500


def test_a_device_that_does_not_tell() -> None:
    with pytest.raises(ConfigError, match="mps does not tell how much memory is free: give a number"):
        free_memory(torch.device("mps"))
