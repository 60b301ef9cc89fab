"""What verifiers says and hears, in both directions: messages of a prompt, and a model's answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.extras import need

Said: TypeAlias = tuple[str, str]  # a role of the chat protocol, and a text


def library() -> Any:
    """The package, with the environments that this is about.

    Raises:
        ConfigError: it is not installed, something that it imports is not, or it is a release that has none any more.
    """
    vf = need("verifiers", "for its environments", "verifiers")
    try:
        for name in ("MultiTurnEnv", "Client"):  # they are imported when they are first asked for
            getattr(vf, name)
    except (AttributeError, ImportError) as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"verifiers {vf.__version__} has no MultiTurnEnv here ({cause}); 0.3 is the last with one: "
            "pip install 'lightning-iterppo[verifiers]'"
        ) from error
    return vf


def said(messages: Iterable[Any]) -> list[Said]:
    """Messages of verifiers, objects or dictionaries, as roles and texts.

    Raises:
        CustomerError: one holds more than text.
    """
    return [(str(message["role"]), _text(message.get("content"))) for message in messages]


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, Mapping) else part.model_dump() for part in content]
    other = [part.get("type") for part in parts if part.get("type") != "text"]
    if other:
        raise CustomerError(f"an environment shows the agent something of type {other[0]!r}: a policy reads text alone")
    return "\n".join(str(part["text"]) for part in parts)


def answer(text: str, model: str, *, finished: bool = True, tokens: Any = None, usage: Any = None) -> Any:
    """What a client of verifiers returns.

    Args:
        text: what the model said.
        model: its name.
        finished: whether it ended by itself and was not cut.
        tokens: a ``ResponseTokens``, where they are known.
        usage: a ``Usage``, likewise.
    """
    types = need("verifiers.types", "for its environments", "verifiers")
    message = types.ResponseMessage(
        content=text,
        finish_reason="stop" if finished else "length",
        is_truncated=not finished,
        tokens=tokens,
    )
    return types.Response(id=uuid.uuid4().hex, created=int(time.time()), model=model, usage=usage, message=message)
