"""Every saving has one switch, and with it on the losses and gradients are those of the plain way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from lightning_iterppo.critic import QCritic
from lightning_iterppo.data.samples import ScoredTree, collate_samples
from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.models import passes, recomputed_attention
from lightning_iterppo.models.adaptation import Computing
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.passes import Passes, like_lengths
from lightning_iterppo.models.tree import ROOT, TokenTree, TreeBatch, collate_trees
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.warm_start import WarmStart

# A training step outside a Trainer has nowhere to log to.
pytestmark = pytest.mark.filterwarnings("ignore:.*self.trainer.*is not registered.*")
Make = Callable[..., LanguageModel]
Stir = Callable[..., None]
Found = dict[str, tuple[Tensor, dict[str, Tensor]]]
SAVINGS = ("fold", "keep_features", "share_prefixes", "trim_padding", "logits_once", "recompute_attention")
PLAIN = dict.fromkeys(SAVINGS, False)
# What saves memory goes with every saving of time.
LEAN = [("checkpointing",), ("checkpointing", "fold"), ("checkpointing", *PLAIN)]


@pytest.fixture(autouse=True)
def calls_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a few thousand weights would not make two passes of one for its padding."""
    monkeypatch.setitem(passes._LAYER_CALL, "cpu", 0.0)


@pytest.fixture(autouse=True)
def attention_is_recomputed_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not pay, but can be compared to five digits."""
    monkeypatch.setattr(recomputed_attention, "_DTYPES", (torch.float32,))


def a_tree(first: int, turns: int) -> TokenTree:
    """Some turns with three responses each, the first of which was sent; a person's own message ends it."""
    tree = TokenTree()
    state = tree.add([3, first, 7, 8], ROOT)
    for turn in range(turns):
        sent = tree.add([9 + turn, 10, 1], state, action=True)
        tree.add([11], state, action=True)
        tree.add([12, first + turn, 14, 1], state, action=True)
        state = tree.add([3, 20 + turn], sent)
    return tree


def the_trees() -> list[TokenTree]:
    return [a_tree(6, 1), a_tree(7, 3), a_tree(8, 2), a_tree(9, 2), a_tree(10, 1)]


def make_model(make: Make, stir: Stir, **switches: Any) -> LanguageModel:
    """A model of three layers of which one trains; the switches that are not named are off."""
    found = {**PLAIN, **switches}
    adaptation = {key: found.pop(key) for key in ("fold", "keep_features")}
    model = make("lora", layers=3, top_layers=1, computing=Computing(**found), **adaptation)
    stir(model, "policy")
    model.copy("policy", "critic")
    return model


def scored(trees: list[TokenTree]) -> Iterator[ScoredTree]:
    for tree in trees:
        count = len(tree.actions)
        yield ScoredTree(tree, [0.1 * (i % 7) for i in range(count)], [0.3] * count, [True] * count)


def steps(model: LanguageModel, **arguments: Any) -> Found:
    """Loss and gradients of a training step of every module."""
    policy = PPOPolicy(model, kl_coefficient=0.1, entropy_coefficient=0.01, **arguments)
    torch.nn.init.constant_(policy.value_head.linear.weight, 0.01)
    critic = QCritic(model, pooling="mean", layer=1, **arguments)
    torch.nn.init.constant_(critic.head.linear.weight, 0.01)
    trees = the_trees()
    found = {}
    model.activate("policy")
    prepared = policy.prepare(list(scored(trees)), rows=2)
    for tensor in model.variant_tensors("policy").values():  # it has moved on from what sampled
        tensor.mul_(1.1)
    batch = collate_samples(prepared, pad_token_id=0)
    turns = turn_batch(trees)
    for name, module, given in (
        ("policy", policy, batch),
        ("critic", critic, turns),
        ("warm start", WarmStart(model, **arguments), turns),
    ):
        module.setup("fit")
        module.zero_grad()
        loss = module.training_step(given, 0)
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}
        found[name] = (loss.detach(), gradients)
    return found


def turn_batch(trees: list[TokenTree]) -> TurnBatch:
    tree: TreeBatch = collate_trees(trees, pad_token_id=0)
    count = len(tree.action_rows)
    return TurnBatch(tree, torch.arange(count) % 2 * 1.0, torch.linspace(0.5, 1.0, count))


def assert_same(found: Found, expected: Found) -> None:
    for name, (loss, gradients) in expected.items():
        torch.testing.assert_close(found[name][0], loss, atol=1e-5, rtol=0)
        assert found[name][1].keys() == gradients.keys()
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[name][1][key], gradient, atol=1e-5, rtol=1e-4)


@pytest.fixture
def plain(make_language_model: Make, stir: Stir) -> Found:
    return steps(make_model(make_language_model, stir))


@pytest.mark.parametrize("switches", [(name,) for name in PLAIN] + [tuple(PLAIN)] + LEAN, ids="+".join)
def test_a_saving_changes_no_loss_and_no_gradient(
    make_language_model: Make, stir: Stir, plain: Found, switches: tuple[str, ...]
) -> None:
    assert_same(steps(make_model(make_language_model, stir, **dict.fromkeys(switches, True))), plain)


def test_without_shared_prefixes_every_response_has_its_own_row(make_language_model: Make, stir: Stir) -> None:
    shapes: list[tuple[int, ...]] = []
    for share in (True, False):
        model = make_model(make_language_model, stir, share_prefixes=share)
        model.trunk.embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))  # type: ignore[union-attr]
        model.hidden(collate_trees([a_tree(6, 2)], pad_token_id=0))
    # Of six responses; the customer's last word is one more end.
    assert shapes == [(1, 24), (7, 14)]


def test_short_rows_have_passes_of_their_own(make_language_model: Make, stir: Stir) -> None:
    shapes: list[tuple[int, ...]] = []
    for trim in (True, False):
        model = make_model(make_language_model, stir, share_prefixes=True, trim_padding=trim)
        model.trunk.embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))  # type: ignore[union-attr]
        hidden = model.hidden(collate_trees([a_tree(6, 2), a_tree(7, 1), a_tree(8, 2)], pad_token_id=0))
        assert hidden.shape[:2] == (3, 24)
    assert shapes == [(1, 14), (2, 24), (3, 24)]


def test_rows_are_grouped_as_the_least_work_has_it() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 40, (5,), generator=generator).tolist()
        cost = float(torch.randint(0, 60, (), generator=generator))
        order = sorted(lengths)

        def work(cuts: tuple[int, ...], order: list[int] = order, cost: float = cost) -> float:
            ends = [0, *cuts, len(order)]
            return sum(cost + (b - a) * order[b - 1] for a, b in pairwise(ends))

        least = min(work(cuts) for n in range(5) for cuts in combinations(range(1, 5), n))
        groups = like_lengths(lengths, cost)
        assert sorted(row for group in groups for row in group) == list(range(5))
        assert sum(cost + len(g) * max(lengths[row] for row in g) for g in groups) == least


def test_a_call_that_costs_much_leaves_rows_together() -> None:
    assert like_lengths([10, 90, 50], 1e6) == [[0, 2, 1]]
    assert like_lengths([10, 90, 50], 0) == [[0], [2], [1]]


# -- checkpointing ---------------------------------------------------------------------------------------------------


def held_bytes(model: LanguageModel) -> int:
    """What a pass keeps for the backward pass, beside weights."""
    kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(collate_trees(the_trees(), pad_token_id=0))
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_holds_less_in_either_mode(make_language_model: Make, kind: str, training: bool) -> None:
    held = []
    for checkpointing in (False, True):
        computing = Computing(checkpointing=checkpointing)
        model = make_language_model(kind, layers=4, fold=False, computing=computing).train(training)
        held.append(held_bytes(model))
    assert held[1] < held[0] / 3


def test_a_layer_is_computed_again_with_the_weights_it_was_computed_with(make_language_model: Make, stir: Stir) -> None:
    found = []
    for checkpointing in (False, True):
        model = make_language_model("lora", computing=Computing(checkpointing=checkpointing))
        stir(model, "critic")
        with model.using("critic"):
            loss = (model.hidden(collate_trees(the_trees(), pad_token_id=0)) ** 2).sum()
        loss.backward()
        assert model.active == "policy"
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(".critic." in key for key in found[0])
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, atol=1e-5, rtol=1e-4)


def test_passes_leave_the_layers_as_they_are(make_language_model: Make) -> None:
    model = make_language_model("full", computing=Computing(checkpointing=True))
    model.hidden(collate_trees(the_trees(), pad_token_id=0)).sum().backward()
    assert all("forward" not in vars(module) for module in model.modules())


# -- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_compiled_layers_give_the_same_losses_and_gradients(make_language_model: Make, stir: Stir) -> None:
    expected = steps(trained_above(make_language_model, stir))
    counters.clear()
    for more in ({}, {"checkpointing": True}):
        assert_same(steps(trained_above(make_language_model, stir, compile=True, **more)), expected)
    assert 0 < counters["stats"]["unique_graphs"] <= 4, "one for either mode of a module, not one a batch or a layer"


def trained_above(make: Make, stir: Stir, **computing: bool) -> LanguageModel:
    """Three layers of which two train: through the upper one gradients flow, so that it is compiled."""
    model = make("lora", layers=3, top_layers=2, computing=Computing(**computing))
    stir(model, "policy", scale=0.05)
    model.copy("policy", "critic")
    return model


def test_without_a_compiler_there_is_one_line(make_language_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: object, **__: object) -> None:
        raise TorchDynamoException("\nInvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda forward, **_: compiled)
    model = make_language_model("full", computing=Computing(compile=True))
    batch = collate_trees(the_trees(), pad_token_id=0)
    with torch.no_grad():
        model.hidden(batch)  # which is not compiled
    with pytest.raises(ConfigError, match=r"^model\.compile is true, .*No working C\+\+ .*\): leave it false$"):
        model.hidden(batch)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_model_without_known_layers(make_language_model: Make) -> None:
    trunk = make_language_model("full").causal_lm
    layers, trunk.model.layers = trunk.model.layers, torch.nn.ModuleList()
    for name in ("checkpointing", "compile"):
        with pytest.raises(ConfigError, match=rf"model\.{name} is true, but a llama model has no layers for it"):
            Passes(trunk, Computing(**{name: True}))
    trunk.model.layers = layers
