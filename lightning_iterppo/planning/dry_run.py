"""The library's own passes and steps on weights without memory, and what they would hold and compute.

Nothing here says how much an adapter, an activation or an optimiser takes: the model, the modules and the optimiser are
those that train, on tensors that have a shape and a type and no content (PyTorch's fake tensors), and every operation
is looked at as it goes by. What the plan says is therefore what the code does, whatever the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_iterppo.models.adaptation import Adaptation, Computing
from lightning_iterppo.models.backbones import Backbone
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.planning.heap import Heap

_aten = torch.ops.aten


#: glibc takes smaller blocks than this from a heap that grows and, until it is told to, hardly shrinks.
HEAP_BLOCKS = 32 * 1024**2


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what happens within it: multiplications, and the memory that tensors hold.

    ``held`` are the bytes of all storages that live, ``flops`` two for each multiplication and addition of a product of
    matrices.

    Args:
        heap: count as a process on Linux does: smaller blocks lie on a `Heap`, and what is freed stays with it.
            Otherwise what is freed can be used for anything.
    """

    def __init__(self, *, heap: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._limit = HEAP_BLOCKS if heap else 0
        self._small = self._large = self._most_large = 0
        self._before = 0  # of the smaller blocks, what was held at the last reset
        self._heap = Heap()
        self._known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    @property
    def held(self) -> int:
        """Bytes of what lives."""
        return self._small + self._large

    @property
    def peak(self) -> int:
        """Bytes that a process had to have since `reset`, if it did the same over and over."""
        return self._before + self._heap.reach + self._most_large

    def reset(self) -> None:
        """Forgets the peak, as a process that gives back what it does not use."""
        self._before, self._most_large = self._small, self._large
        self._heap = Heap()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Counts storages that were there before; gives their bytes, those that were known already left out."""
        before = self.held
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage._cdata
            if self._known.get(place) is storage:
                continue
            self._known[place] = storage
            size = storage.nbytes()
            if size < self._limit:
                self._small += size
                weakref.finalize(storage, self._free_small, self._heap, self._heap.take(size), size)
            else:
                self._large += size
                self._most_large = max(self._most_large, self._large)
                weakref.finalize(storage, self._free_large, size)
        return self.held - before

    def _free_small(self, heap: Heap, start: int, size: int) -> None:
        self._small -= size
        heap.give(start, size)

    def _free_large(self, size: int) -> None:
        self._large -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(each.shape for each in args[:3]))  # type: ignore[no-untyped-call]
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
            shapes = (each.shape for each in args[:4])
            self.flops += sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
        return result


@contextmanager
def without_memory() -> Iterator[FakeTensorMode]:
    """Within it, tensors that are made hold no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def imagined_model(
    config: PreTrainedConfig, adaptation: Adaptation, computing: Computing, dtype: torch.dtype, mode: FakeTensorMode
) -> LanguageModel:
    """A language model with all its variants and no memory, as if it were on the processor.

    Args:
        config: what it is made of.
        adaptation: what is trained.
        computing: how its passes are computed.
        dtype: of the weights that do not train.
        mode: what `without_memory` gives; it must not be entered yet.
    """
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if adaptation.kind == "full" else dtype)
        nobody = cast(PreTrainedTokenizerBase, SimpleNamespace(pad_token_id=0))  # no text is read
        model = LanguageModel(Backbone(made.eval(), nobody, "plan", None), adaptation, computing)
    _imagine(model, mode)
    return model


def _imagine(module: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake tensors of the processor in the place of tensors on the device ``meta``, shared ones shared."""
    found: dict[int, Tensor] = {}

    def instead(tensor: Tensor) -> Tensor:
        key = id(tensor)
        if key not in found:
            fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
            found[key] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        return found[key]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = instead(tensor)  # type: ignore[assignment]
