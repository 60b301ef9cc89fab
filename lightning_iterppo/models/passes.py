"""Passes of a trunk over rows of trees: what can be shared or kept is computed once, and each saving has its switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.models.adaptation import Computing
from lightning_iterppo.models.attention import GROUPED, attending
from lightning_iterppo.models.masks import layer_kinds, masks_of
from lightning_iterppo.models.recomputed_attention import RECOMPUTED
from lightning_iterppo.models.stacks import layer_span
from lightning_iterppo.models.tree import TreeBatch, own_rows


def _where_gradients_flow(
    compiled: Callable[..., Any], plain: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Layers without gradients, and the lowest one with them, would each be one more thing to compile."""
    return (compiled if hidden.requires_grad else plain)(hidden, *args, **kwargs)


@contextmanager
def _explained() -> Iterator[None]:
    """One line where a compiler is missing, or does not know what it is given."""
    # Imported here: it takes a second, and few need it.
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"model.compile is true, but torch.compile fails here ({reason}): leave it false") from error


# What calling a layer once more costs, forward and backward, in the multiplications that the device does meanwhile.
_LAYER_CALL = {"cpu": 2e8, "accelerator": 5e10}


def like_lengths(lengths: Sequence[int], call_cost: float) -> list[list[int]]:
    """Rows in groups of like length: those with the least sum of tokens, padding and ``call_cost`` tokens a group.

    Args:
        lengths: of the rows.
        call_cost: what a group costs beside its tokens.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    # Of the shortest n rows: what they cost at least, and where their last group begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(order) + 1):
        width = lengths[order[stop - 1]]
        best.append(min((best[start][0] + call_cost + (stop - start) * width, start) for start in range(stop)))
    groups: list[list[int]] = []
    stop = len(order)
    while stop:
        start = best[stop][1]
        groups.insert(0, order[start:stop])
        stop = start
    return groups


class Passes:
    """Runs a trunk.

    Args:
        model: the transformers model, adapters injected.
        computing: how.
        frozen_layers: how many of its lowest layers no variant changes, and whose outputs are kept; 0 keeps none.
        again: gives a block for later, within which the weights are those of now: a layer that is computed again in the
            backward pass has to give what it gave.

    Raises:
        ConfigError: the model has no layers that could be compiled or checkpointed, or some of an unknown kind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        computing: Computing,
        *,
        frozen_layers: int = 0,
        again: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        layer_kinds(model.config)
        self.model = model
        self.trunk: nn.Module = getattr(model, model.base_model_prefix)
        #: Calls the trunk. Weights in shards may have to be put together for it.
        self.run: Callable[..., Any] = self.trunk
        self.computing = computing
        self.frozen_layers = frozen_layers
        self._again = again
        self._layers = [module for module in self.trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
        embeddings = {id(p) for m in self.trunk.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        multiplied = sum(p.numel() for p in self.trunk.parameters() if id(p) not in embeddings)
        self._layer_size: float = max(1, multiplied) / int(model.config.num_hidden_layers)
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}
        for name in ("checkpointing", "compile"):
            if getattr(computing, name) and not self._layers:
                raise ConfigError(f"model.{name} is true, but a {model.config.model_type} model has no layers for it")
        # Whose features a tree holds. An object and not id(self), which a later model can have again.
        self._owner = object()

    def in_step(self) -> list[nn.Module]:
        """Makes passes over as many rows the same on every process from now on, and gives the layers to be shared.

        Raises:
            ConfigError: the model has none of the usual kind.
        """
        if not self._layers:
            raise ConfigError(f"trainer.strategy fsdp: a {self.model.config.model_type} model has no layers to shard")
        self.computing = replace(self.computing, trim_padding=False)
        self.frozen_layers = 0
        return list(self._layers)

    def hidden(self, batch: TreeBatch, layers: int | None = None) -> Tensor:
        """Hidden states of every token of the rows, (rows, tokens, hidden).

        Args:
            batch: the rows.
            layers: how many layers are computed, where the model can be run in parts; None is the whole trunk.
        """
        if self.computing.share_prefixes:
            return self._trimmed(batch, layers)
        alone, rows, positions = own_rows(batch)
        return self._trimmed(alone, layers)[rows, positions]

    def _trimmed(self, batch: TreeBatch, layers: int | None) -> Tensor:
        width = batch.input_ids.shape[1]
        groups = [list(range(len(batch.trees)))]
        if self.computing.trim_padding:
            groups = like_lengths([len(tree) for tree in batch.trees], self._call_cost(batch.input_ids.device))
        if len(groups) == 1:
            return self._shared(batch, layers)
        parts = [self._shared(batch.trunk_rows(group), layers) for group in groups]
        places = torch.tensor([row for group in groups for row in group], device=batch.input_ids.device)
        # What pads is nobody's, so that zeros serve.
        return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])[places.argsort()]

    def _call_cost(self, device: torch.device) -> float:
        """What one more pass costs beside its tokens, in tokens."""
        return _LAYER_CALL["cpu" if device.type == "cpu" else "accelerator"] / self._layer_size

    def _shared(self, batch: TreeBatch, layers: int | None) -> Tensor:
        if self.frozen_layers == 0 or (layers is not None and layers <= self.frozen_layers):
            with self._span(0, layers):
                return self._run(batch, input_ids=batch.input_ids)
        known = [tree.features for tree in batch.trees]
        width = batch.input_ids.shape[1]
        if any(item is None or item[0] is not self._owner for item in known):
            with torch.no_grad(), layer_span(self.trunk, 0, self.frozen_layers):
                features = self._run(batch, input_ids=batch.input_ids)
            for row, tree in enumerate(batch.trees):
                tree.features = (self._owner, features[row, : len(tree)].clone())
        else:
            features = pad_sequence([item[1] for item in known if item is not None], batch_first=True)
            features = F.pad(features, (0, 0, 0, width - features.shape[1])).to(batch.input_ids.device)
        with self._span(self.frozen_layers, layers):
            return self._run(batch, inputs_embeds=features)

    def _span(self, start: int, stop: int | None) -> AbstractContextManager[None]:
        return nullcontext() if start == 0 and stop is None else layer_span(self.trunk, start, stop)

    def _run(self, batch: TreeBatch, **inputs: Tensor) -> Tensor:
        mask = None
        if batch.attention_mask is not None:
            mask = self.attention_mask(batch.attention_mask, batch.position_ids, batch.position_ids)
        with self._own_layers(), self._own_attention():
            output = self.run(position_ids=batch.position_ids, attention_mask=mask, use_cache=False, **inputs)
        return cast(Tensor, output.last_hidden_state)

    def _own_attention(self) -> AbstractContextManager[None]:
        """For a pass with gradients. A layer that is computed again, or compiled, has transformers' own."""
        wanted = self.computing.recompute_attention and not (self.computing.checkpointing or self.computing.compile)
        return attending(self.model.config, RECOMPUTED) if wanted and torch.is_grad_enabled() else nullcontext()

    @contextmanager
    def _own_layers(self) -> Iterator[None]:
        """Layers that compute as it was asked for, within a pass of ours with gradients only.

        Generation needs them as they are: it reads keys and values that grow, which a compiler would compile for over
        and over. And transformers' own switch for checkpointing acts in training mode only; a model that was loaded for
        evaluation stays in it under Lightning.
        """
        if not torch.is_grad_enabled() or not (self.computing.checkpointing or self.computing.compile):
            yield
            return
        before = [dict(vars(layer)) for layer in self._layers]
        with _explained() if self.computing.compile else nullcontext():
            for layer in self._layers:
                vars(layer)["forward"] = self._own_forward(layer)
            try:
                yield
            finally:
                for layer, attributes in zip(self._layers, before, strict=True):
                    vars(layer).pop("forward")
                    vars(layer).update({"forward": attributes["forward"]} if "forward" in attributes else {})

    def _own_forward(self, layer: nn.Module) -> Callable[..., Any]:
        forward: Callable[..., Any] = layer.forward
        if self.computing.compile:
            if layer not in self._compiled:
                self._compiled[layer] = torch.compile(forward, dynamic=True)
            forward = partial(_where_gradients_flow, self._compiled[layer], forward)
        if self.computing.checkpointing:
            again = self._again
            forward = partial(checkpoint, forward, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
        return forward

    def attention_mask(self, mask: Tensor, queries: Tensor, keys: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """A mask in the form that the attention in use takes; one a kind of layer where some have a window.

        The fused attention takes it as it is, whatever the precision; the plain one adds 0 or the least number.

        Args:
            mask: true where a query may look, (rows, 1, queries, keys).
            queries: positions, (rows, queries).
            keys: positions, (rows, keys); None where key n has position n.
        """
        found = masks_of(self.model.config, mask, queries, keys)
        if self.model.config._attn_implementation in ("sdpa", GROUPED):
            return found
        return (
            {kind: self._added(each) for kind, each in found.items()} if isinstance(found, dict) else self._added(found)
        )

    def _added(self, mask: Tensor) -> Tensor:
        dtype = cast(Tensor, self.model.get_output_embeddings().weight).dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
