"""What of a model is trained, and how its passes are computed: plain choices, and which maps LoRA goes beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Kind = Literal["lora", "dora", "full"]
KINDS: Final[tuple[Kind, ...]] = ("lora", "dora", "full")


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What is trained.

    Args:
        kind: ``lora`` trains small matrices beside frozen weights, ``full`` trains every weight. ``dora`` is LoRA for a
            weight's direction, and trains its length by itself (Liu et al. 2024, "DoRA: weight-decomposed low-rank
            adaptation").
        rank: LoRA's rank; more can express more and costs more.
        alpha: LoRA's scale is alpha / rank.
        dropout: dropout before LoRA's matrices; any value above 0 makes PPO's ratio noisy.
        top_layers: adapt only the last n layers; None adapts all. The layers below need no gradients, which is
            where most of the training time goes.
        fold: compute with the adapter added into the weights where that is exact, see `Folding`; False computes it
            beside them, for comparison.
        keep_features: compute what the layers below the adapted ones make of a row once, and keep it; False computes it
            in every pass, for comparison.
    """

    kind: Kind = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    top_layers: int | None = None
    fold: bool = True
    keep_features: bool = True


@dataclass(frozen=True, slots=True)
class Computing:
    """How passes are computed. No choice changes a number by more than rounding.

    Args:
        share_prefixes: compute what the responses of a row have in common once; False gives each response a row of its
            own, for comparison.
        trim_padding: compute rows of a batch that are much shorter than others in passes of their own, which pad less,
            where that is worth the call; False pads all to the longest, for comparison.
        logits_once: where the output embedding does not train, make the gradient of log-probabilities while the logits
            are there; False makes them again in the backward pass, for comparison.
        recompute_attention: on a processor and in 16 bits, compute the attention weights of short rows again in the
            backward pass, as products of matrices; False leaves it to torch's fused kernel, for comparison, as
            checkpointing and compile do.
        checkpointing: keep only the input of each layer for the backward pass, which computes the layer again: much
            less memory, for one more forward pass.
        compile: let torch.compile fuse what the trained layers do in passes with gradients. Takes a C++ compiler on a
            processor, Triton on a GPU, and a minute for the first steps.
    """

    share_prefixes: bool = True
    trim_padding: bool = True
    logits_once: bool = True
    recompute_attention: bool = True
    checkpointing: bool = False
    compile: bool = False


def linear_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear maps inside the layers (``q_proj``, ``down_proj``, …); the output embedding is not one."""
    trunk = getattr(model, model.base_model_prefix)
    return sorted({name.rpartition(".")[2] for name, m in trunk.named_modules() if isinstance(m, nn.Linear | Conv1D)})
