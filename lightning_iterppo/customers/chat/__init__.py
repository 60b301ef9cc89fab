"""A language model behind a server as the customer, by the OpenAI chat protocol. Needs the extra ``chat``."""

from lightning_iterppo.customers.chat.client import Answer, ChatClient, Usage
from lightning_iterppo.customers.chat.customer import ChatCustomer
from lightning_iterppo.customers.chat.outcomes import JudgeOutcome, Outcome, SaidOutcome, ToolOutcome

__all__ = ["Answer", "ChatClient", "ChatCustomer", "JudgeOutcome", "Outcome", "SaidOutcome", "ToolOutcome", "Usage"]
