"""Attention masks for models some of whose layers look at the newest tokens only."""

from __future__ import annotations

from torch import Tensor, arange
from transformers import PreTrainedConfig

from lightning_iterppo.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """The kinds of a model's layers.

    Raises:
        ConfigError: one is neither full nor sliding attention, so that a mask does not say all that it looks at.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if not kinds:
        return {FULL if _window(config) is None else SLIDING}
    if other := sorted(kinds - {FULL, SLIDING}):
        raise ConfigError(
            f"a {text.model_type} model has layers of {other[0].replace('_', ' ')}, with which conversations cannot be "
            "computed as trees: take a model whose layers are of full or sliding attention"
        )
    return kinds


def masks_of(
    config: PreTrainedConfig, mask: Tensor, queries: Tensor, keys: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """The mask, or one for every kind of layer, in the form in which transformers' models take it.

    A mask that is given whole is taken as it is: transformers adds no window to it.

    Args:
        config: the model's.
        mask: true where a query may look, (rows, 1, queries, keys).
        queries: positions, (rows, queries).
        keys: positions, (rows, keys); None where key n has position n.
    """
    kinds = layer_kinds(config)
    window = _window(config)
    if SLIDING not in kinds or window is None:
        return mask
    places = arange(mask.shape[-1], device=mask.device)[None] if keys is None else keys
    near = queries[:, None, :, None] - places[:, None, None, :] < window
    if not getattr(config.get_text_config(), "layer_types", None):
        return mask & near
    return {FULL: mask, SLIDING: mask & near}


def _window(config: PreTrainedConfig) -> int | None:
    found: int | None = getattr(config.get_text_config(), "sliding_window", None)
    return found
