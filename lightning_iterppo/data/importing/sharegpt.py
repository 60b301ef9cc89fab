"""The ShareGPT form: as the chat form, with ``conversations`` of ``from`` (human, gpt) and ``value``."""

from __future__ import annotations

from dataclasses import replace

from lightning_iterppo.data.importing import chat

FIELDS = replace(chat.FIELDS, messages="conversations", speaker="from", text="value")
USES = chat.USES
read = chat.read
