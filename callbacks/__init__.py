"""Callbacks for the loop: ordinary Lightning callbacks that also have the loop's outer hooks.

Installed as ``lightning_iterppo.callbacks``. One callback a file; `OuterCallback` documents the hooks.
"""

from __future__ import annotations

from lightning_iterppo.callbacks.adaptive_kl import AdaptiveKL
from lightning_iterppo.callbacks.conversation_logger import ConversationLogger
from lightning_iterppo.callbacks.conversation_store_writer import ConversationStoreWriter
from lightning_iterppo.callbacks.iteration_checkpoint import IterationCheckpoint
from lightning_iterppo.callbacks.outer import OuterCallback
from lightning_iterppo.callbacks.rich_progress import RichProgress
from lightning_iterppo.callbacks.stop_at_outcome import StopAtOutcome
from lightning_iterppo.callbacks.throughput_monitor import ThroughputMonitor

__all__ = [
    "AdaptiveKL",
    "ConversationLogger",
    "ConversationStoreWriter",
    "IterationCheckpoint",
    "OuterCallback",
    "RichProgress",
    "StopAtOutcome",
    "ThroughputMonitor",
]
