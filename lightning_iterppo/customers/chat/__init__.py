"""A language model as the customer: behind a server, by the OpenAI chat protocol (extra ``chat``), or in memory."""

from lightning_iterppo.customers.chat.client import Answer, ChatClient, Client, Usage
from lightning_iterppo.customers.chat.customer import ChatCustomer
from lightning_iterppo.customers.chat.local import LocalClient, ModelHost
from lightning_iterppo.customers.chat.outcomes import JudgeOutcome, Outcome, SaidOutcome, ToolOutcome

__all__ = [
    "Answer",
    "ChatClient",
    "ChatCustomer",
    "Client",
    "JudgeOutcome",
    "LocalClient",
    "ModelHost",
    "Outcome",
    "SaidOutcome",
    "ToolOutcome",
    "Usage",
]
