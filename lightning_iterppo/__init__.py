"""Iterative PPO on Lightning: train a language-model agent on the outcome of a whole conversation.

The public names are importable from here: ``from lightning_iterppo import QCritic``. Each is loaded when it is first
asked for, so that ``import lightning_iterppo`` and ``iterppo --help`` do not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_iterppo.build import build_loop
    from lightning_iterppo.composition import compose, load_recipe
    from lightning_iterppo.config import Recipe, TrainerConfig
    from lightning_iterppo.conversation import Conversation, ConversationError, Message, Suggestion, Turn
    from lightning_iterppo.critic import QCritic
    from lightning_iterppo.customers import Customer, CustomerReply
    from lightning_iterppo.data.conversation_file import ConversationFile
    from lightning_iterppo.data.logs import iter_conversations, read_conversations, write_conversations
    from lightning_iterppo.data.turns import TurnDataModule, split_conversations
    from lightning_iterppo.errors import (
        ConfigError,
        CustomerError,
        IterPPOError,
        LogFormatError,
        ModelNotFoundError,
        RunDirectoryError,
    )
    from lightning_iterppo.evaluation.rates import outcome_rate, wilson_interval
    from lightning_iterppo.generation.engine import Engine, PolicyFiles, PolicyServer, Response
    from lightning_iterppo.generation.local import LocalEngine
    from lightning_iterppo.generation.sampling import Sampling
    from lightning_iterppo.improvement import RoundDataModule, RoundState, score_each
    from lightning_iterppo.loop import IterativePPOLoop
    from lightning_iterppo.models.adaptation import Adaptation, Computing
    from lightning_iterppo.models.backbones import Backbone, load_backbone
    from lightning_iterppo.models.language_model import LanguageModel
    from lightning_iterppo.models.rendering import ChatRenderer
    from lightning_iterppo.models.scratch import ScratchConfig
    from lightning_iterppo.policy import PPOPolicy
    from lightning_iterppo.run_directory import RunDirectory
    from lightning_iterppo.settings import LoopSettings
    from lightning_iterppo.summary import Rate, Summary
    from lightning_iterppo.trainer import TrainerFactory
    from lightning_iterppo.warm_start import WarmStart

__version__ = version("lightning-iterppo")

#: Where each public name lives. The same as the imports above; a test compares them.
_HOMES = {
    "build": ("build_loop",),
    "composition": ("compose", "load_recipe"),
    "config": ("Recipe", "TrainerConfig"),
    "conversation": ("Conversation", "ConversationError", "Message", "Suggestion", "Turn"),
    "critic": ("QCritic",),
    "customers": ("Customer", "CustomerReply"),
    "data.conversation_file": ("ConversationFile",),
    "data.logs": ("iter_conversations", "read_conversations", "write_conversations"),
    "data.turns": ("TurnDataModule", "split_conversations"),
    "errors": (
        "ConfigError",
        "CustomerError",
        "IterPPOError",
        "LogFormatError",
        "ModelNotFoundError",
        "RunDirectoryError",
    ),
    "evaluation.rates": ("outcome_rate", "wilson_interval"),
    "generation.engine": ("Engine", "PolicyFiles", "PolicyServer", "Response"),
    "generation.local": ("LocalEngine",),
    "generation.sampling": ("Sampling",),
    "improvement": ("RoundDataModule", "RoundState", "score_each"),
    "loop": ("IterativePPOLoop",),
    "models.adaptation": ("Adaptation", "Computing"),
    "models.backbones": ("Backbone", "load_backbone"),
    "models.language_model": ("LanguageModel",),
    "models.rendering": ("ChatRenderer",),
    "models.scratch": ("ScratchConfig",),
    "policy": ("PPOPolicy",),
    "run_directory": ("RunDirectory",),
    "settings": ("LoopSettings",),
    "summary": ("Rate", "Summary"),
    "trainer": ("TrainerFactory",),
    "warm_start": ("WarmStart",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adaptation",
    "Backbone",
    "ChatRenderer",
    "Computing",
    "ConfigError",
    "Conversation",
    "ConversationError",
    "ConversationFile",
    "Customer",
    "CustomerError",
    "CustomerReply",
    "Engine",
    "IterPPOError",
    "IterativePPOLoop",
    "LanguageModel",
    "LocalEngine",
    "LogFormatError",
    "LoopSettings",
    "Message",
    "ModelNotFoundError",
    "PPOPolicy",
    "PolicyFiles",
    "PolicyServer",
    "QCritic",
    "Rate",
    "Recipe",
    "Response",
    "RoundDataModule",
    "RoundState",
    "RunDirectory",
    "RunDirectoryError",
    "Sampling",
    "ScratchConfig",
    "Suggestion",
    "Summary",
    "TrainerConfig",
    "TrainerFactory",
    "Turn",
    "TurnDataModule",
    "WarmStart",
    "__version__",
    "build_loop",
    "compose",
    "iter_conversations",
    "load_backbone",
    "load_recipe",
    "outcome_rate",
    "read_conversations",
    "score_each",
    "split_conversations",
    "wilson_interval",
    "write_conversations",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
