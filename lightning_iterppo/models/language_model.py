"""A causal language model with variants: policy, anchor, reference and critic over one set of base weights.

With LoRA every variant is an adapter. With full fine-tuning a variant is a set of weights that takes the place of the
module's own while it is in use (`WeightSets`); it is made on first use only. Either way the rest of the library says
`using("anchor")` and does not ask which it is. Where weights are in shards it says `whole` after it: all processes
change the variant together, and put one together at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.models.adaptation import KINDS, Adaptation, Computing, Kind, linear_names
from lightning_iterppo.models.attention import grouped
from lightning_iterppo.models.backbones import Backbone, load_backbone
from lightning_iterppo.models.folding import Folding
from lightning_iterppo.models.linear import use_few_rows
from lightning_iterppo.models.output_head import OutputHead
from lightning_iterppo.models.passes import Passes
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.models.sharding import Sharding
from lightning_iterppo.models.stacks import plain_stack
from lightning_iterppo.models.tree import TreeBatch
from lightning_iterppo.models.variant_files import load_variant, save_variant
from lightning_iterppo.models.weight_sets import WeightSets

POLICY, ANCHOR, REFERENCE, CRITIC = "policy", "anchor", "reference", "critic"
VARIANTS = (POLICY, ANCHOR, REFERENCE, CRITIC)


class LanguageModel(nn.Module):
    """A backbone and its variants.

    Args:
        backbone: the model and its tokenizer.
        adaptation: LoRA or full fine-tuning.
        computing: how its passes are computed.

    Raises:
        ValueError: more layers are to be adapted than there are.
        ConfigError: passes of this model cannot be computed as it is asked for.
    """

    def __init__(self, backbone: Backbone, adaptation: Adaptation, computing: Computing | None = None) -> None:
        super().__init__()
        self.adaptation = adaptation
        self.computing = computing or Computing()
        self.base_path = str(backbone.path or backbone.id)
        self.started_from = backbone.started_from
        self.tokenizer = backbone.tokenizer
        self.pad_token_id = int(backbone.tokenizer.pad_token_id or 0)  # fills rows; it is masked everywhere
        model = backbone.model
        use_few_rows(getattr(model, model.base_model_prefix))
        layers = int(model.config.num_hidden_layers)
        self.hidden_size = int(model.config.hidden_size)
        if adaptation.top_layers is not None and not 0 < adaptation.top_layers <= layers:
            raise ValueError(
                f"top_layers is {adaptation.top_layers}, but the model has {layers} layers; null adapts all"
            )
        self.active = POLICY
        #: What every pass over trees is computed in, inside a Trainer and outside: what was fitted in a mixed precision
        #: is not the same function in another, and PPO's ratio must begin at 1. Generation is not in it: it would cast
        #: all weights anew for every token.
        self.precision: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._names = list(VARIANTS)
        self._sharding: Sharding | None = None
        self._sets: WeightSets | None = None
        if self.lora:
            config = LoraConfig(
                r=adaptation.rank,
                lora_alpha=adaptation.alpha,
                lora_dropout=adaptation.dropout,
                target_modules=linear_names(model),
                layers_to_transform=(
                    None if adaptation.top_layers is None else list(range(layers - adaptation.top_layers, layers))
                ),
                task_type="CAUSAL_LM",
                use_dora=adaptation.kind == "dora",
            )
            peft_model = get_peft_model(model, config, adapter_name=POLICY)
            for name in VARIANTS[1:]:
                peft_model.add_adapter(name, config)
            self.model: nn.Module = peft_model
            for name in VARIANTS[1:]:
                self.copy(POLICY, name)
        else:
            if next(model.parameters()).dtype != torch.float32:
                # Adam's steps are smaller than bfloat16 can represent beside a weight: the trained weights are float32.
                model = model.float()
            model.requires_grad_(True)
            self.model = model
            self._sets = WeightSets(model, POLICY)
        self._head = OutputHead(self.causal_lm, once=self.computing.logits_once)
        self.frozen_layers = layers - (adaptation.top_layers or layers) if self.lora else 0
        self._folding = Folding(self.model) if self.lora and adaptation.fold else None
        kept = adaptation.keep_features and plain_stack(model.config)
        self._passes = Passes(
            self.causal_lm, self.computing, frozen_layers=self.frozen_layers if kept else 0, again=self._again
        )
        self.activate(POLICY)

    @classmethod
    def load(
        cls,
        id: str = "smollm2",
        adaptation: Adaptation | Kind = "lora",
        *,
        computing: Computing | None = None,
        dtype: str = "auto",
        scratch: ScratchConfig | None = None,
        seed: int = 0,
    ) -> LanguageModel:
        """A backbone by name, adapted.

        Args:
            id: what `load_backbone` takes: ``smollm2``, a directory, a GGUF file, an id of the Hub, or ``scratch``.
            adaptation: how, in one word or in full.
            computing: how its passes are computed.
            dtype: of the frozen weights; full fine-tuning is always float32.
            scratch: what a scratch model is made of.
            seed: for a scratch model's weights. An adapter's come from torch's own generator.

        Raises:
            ModelNotFoundError: the model is not on this machine and cannot be downloaded.
            ConfigError: an unknown dtype, or a scratch model without its configuration.
            ValueError: an unknown adaptation, or more layers are to be adapted than there are.
        """
        how = adaptation if isinstance(adaptation, Adaptation) else Adaptation(kind=adaptation)
        if how.kind not in KINDS:
            raise ValueError(f"adaptation must be {', '.join(KINDS)}, found {how.kind!r}")
        # Trained weights are float32: loading them as anything else would round them first.
        wanted = "float32" if how.kind == "full" else dtype
        return cls(load_backbone(id, dtype=wanted, scratch=scratch, seed=seed), how, computing)

    @property
    def lora(self) -> bool:
        """Whether variants are adapters."""
        return self.adaptation.kind != "full"

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, adapters injected."""
        if self.lora:
            return cast(PreTrainedModel, self.model.get_base_model())  # type: ignore[operator]
        return cast(PreTrainedModel, self.model)

    @property
    def trunk(self) -> nn.Module:
        """Everything up to the last hidden state."""
        lm = self.causal_lm
        return cast(nn.Module, getattr(lm, lm.base_model_prefix))

    @property
    def head_weight(self) -> Tensor:
        """The output embedding, (vocabulary, hidden)."""
        return self._head.weight

    @property
    def keeps_features(self) -> bool:
        """Whether what the layers below the adapted ones make of a tree is kept on it."""
        return self._passes.frozen_layers > 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    # -- variants ------------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        """Moves the weights of all variants together: `torch.nn.Module.to` only knows those in use."""
        if self._sets is not None:
            self._sets.apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def activate(self, name: str) -> None:
        """Makes ``name`` the variant in use and the only one that trains.

        Raises:
            ValueError: there is no such variant.
            RuntimeError: all weights train, and those of another variant are whole for a while.
        """
        if name not in self._names:
            raise ValueError(f"unknown variant {name!r}; there are {', '.join(self._names)}")
        if self._sets is None:
            self.model.set_adapter(name)  # type: ignore[operator]
        else:
            self._sets.use(name)
            if self.head_weight is not self.causal_lm.get_input_embeddings().weight:
                # The critic makes no logits: under DDP the others would wait for a gradient that never comes.
                self._head.module.requires_grad_(name != CRITIC)
        self.active = name

    @property
    def sharded(self) -> bool:
        """Whether the weights are divided among processes."""
        return self._sharding is not None

    def shard(self, mesh: DeviceMesh, heads: Sequence[nn.Module] = ()) -> None:
        """Divides the layers and what is trained beside them among processes, each of which has a part from then on.

        With full fine-tuning embeddings and norms too, and every variant. Padding is not trimmed and frozen layers'
        features are not kept then: both make processes' passes differ.

        Args:
            mesh: the processes, in one dimension.
            heads: modules that train with a variant.

        Raises:
            ConfigError: the model has no layers of transformers' usual kind.
        """
        layers = self._passes.in_step()
        self._sharding = Sharding([*layers, *heads], mesh, around=None if self.lora else self.causal_lm)
        self._passes.run = self._sharding.through(self.trunk)
        if self._sets is not None:
            self._sets.sharding = self._sharding

    def whole(self) -> AbstractContextManager[None]:
        """Within it weights in shards are whole, see `Sharding.whole`; nothing otherwise.

        With full fine-tuning those of the variant in use, which stays the same within.
        """
        return nullcontext() if self._sharding is None else self._sharding.whole()

    def add(self, name: str) -> None:
        """One more variant: the base weights and an adapter that adds nothing, or a copy of all weights as they are."""
        self._names.append(name)
        if self._sets is None:
            peft = cast(PeftModel, self.model)
            peft.add_adapter(name, peft.peft_config[POLICY])
            self.activate(self.active)  # peft makes what is new trainable
        else:
            self._sets.make_room(name)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """The variant ``name`` inside the block, the one before after it."""
        before = self.active
        if name != before:
            self.activate(name)
        try:
            yield
        finally:
            if name != before:
                self.activate(before)

    def variant_tensors(self, name: str) -> dict[str, Tensor]:
        """The weights that make the variant, by name; no copies."""
        if self._sets is not None:
            return self._sets.tensors(name)
        marker = f".{name}."
        return {
            key.replace(marker, "."): parameter.data
            for key, parameter in self.model.named_parameters()
            if marker in key and ".lora_" in key
        }

    def copy(self, source: str, target: str) -> None:
        """Makes ``target`` equal to ``source``."""
        if source == target:
            return
        if self._sharding is not None and self._sharding.is_whole:
            raise RuntimeError("what is written into weights that are whole for a while is lost")
        if self._sets is not None:
            self._sets.copy(source, target)
            return
        destination = self.variant_tensors(target)
        for key, tensor in self.variant_tensors(source).items():
            destination[key].copy_(tensor)

    def make_room(self, name: str) -> None:
        """Gives a variant weights of its own, those in use now, if it has none yet (full fine-tuning)."""
        if self._sets is not None:
            self._sets.make_room(name)

    def discard(self, name: str) -> None:
        """Frees the weights of a variant that is not needed any more (full fine-tuning; adapters are small)."""
        if self._sets is not None:
            self._sets.discard(name)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimiser of the active variant trains."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # -- computing -----------------------------------------------------------------------------------------------

    def folded(self) -> AbstractContextManager[None]:
        """Within it, passes compute with the active adapter folded in, where that is exact and wanted.

        The weights and the variant in use must not change within it. `hidden` does it by itself; it is for whoever runs
        the trunk many times over, as generation does.
        """
        # In shards a layer may happen to be whole, but not each time that a pass is computed.
        in_shards = self._sharding is not None and not self._sharding.is_whole
        return nullcontext() if self._folding is None or in_shards else self._folding.folded(self.active)

    def grouped(self) -> AbstractContextManager[None]:
        """Within it, passes with a mask share keys and values between the heads of a group without copies of them."""
        config = self.causal_lm.config
        return grouped(config) if plain_stack(config) else nullcontext()

    def check_layer(self, layer: int | None) -> None:
        """Whether `hidden` can stop after a layer.

        Raises:
            ConfigError: the model has no such layer, or cannot be run in parts.
        """
        if layer is None:
            return
        config = self.causal_lm.config
        if not plain_stack(config):
            raise ConfigError(f"critic.layer is {layer}, but a {config.model_type} model cannot stop there; take null")
        if not 1 <= layer <= config.num_hidden_layers:
            raise ConfigError(f"critic.layer is {layer}, but the model has {config.num_hidden_layers} layers")

    def hidden(self, batch: TreeBatch, *, layers: int | None = None) -> Tensor:
        """Hidden states of every token under the active variant, (rows, tokens, hidden), as the last layer leaves them.

        Layers below the adapted ones are the same for every variant and never change: what they make of a tree is
        computed once and kept on it, for all passes over it.

        Args:
            batch: the rows.
            layers: stop after so many; as transformers' ``hidden_states[layers]``, only the last are normalised.
        """
        with self.precision(), self.folded():
            return self._passes.hidden(batch, None if layers == self.causal_lm.config.num_hidden_layers else layers)

    @contextmanager
    def _as_then(self, name: str, folds: AbstractContextManager[None]) -> Iterator[None]:
        with self.using(name), folds:
            yield

    def _again(self) -> AbstractContextManager[None]:
        """A block for later, within which the variant in use, and what is folded, are those of now."""
        return self._as_then(self.active, nullcontext() if self._folding is None else self._folding.again())

    def attention_mask(self, mask: Tensor, queries: Tensor) -> Tensor | dict[str, Tensor]:
        """See `Passes.attention_mask`."""
        return self._passes.attention_mask(mask, queries)

    def response_logprobs(
        self, hidden: Tensor, batch: TreeBatch, *, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`logprobs.response_logprobs` with this model's output embedding, the fast way when it does not train."""
        with self.precision():
            return self._head.response_logprobs(hidden, batch, entropy_gradient=entropy_gradient)

    def score_tokens(self, hidden: Tensor, tokens: Tensor, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """`logprobs.score_tokens` with this model's output embedding: what `response_logprobs` does for real tokens."""
        with self.precision():
            return self._head.score_tokens(hidden, tokens, entropy_gradient=entropy_gradient)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token in float32, (…, vocabulary)."""
        return self._head.logits(hidden)

    # -- files ---------------------------------------------------------------------------------------------------

    def save_variant(self, name: str, directory: Path | None) -> None:
        """Writes a variant as Hugging Face files: adapter_model.safetensors with its config, or full safetensors.

        Args:
            name: of the variant.
            directory: where; None where weights are in shards and another process writes: all of them do this together
                then, unless the variant is in use and whole.
        """
        save_variant(self, name, directory)

    def load_variant(self, name: str, directory: Path) -> None:
        """Reads what `save_variant` wrote.

        Raises:
            FileNotFoundError: the directory does not hold a variant of this kind.
            ValueError: the weights there are of another shape, or an adapter is one of other weights.
        """
        load_variant(self, name, directory)

    def merged(self, name: str) -> PreTrainedModel:
        """A variant as a plain model, adapters added into the weights; this model cannot be used afterwards."""
        self.activate(name)
        return cast(PreTrainedModel, cast(Any, self.model).merge_and_unload()) if self.lora else self.causal_lm

    def save_merged(self, name: str, directory: Path) -> None:
        """Writes a variant as one full model, adapters added into the weights; the model cannot be used afterwards."""
        self.merged(name).save_pretrained(str(directory))
        self.tokenizer.save_pretrained(str(directory))
