"""Understands what an agent says in the shop: free text in, dialogue acts out, by keyword families.

Meant for the free text of a language model: generous about wording, strict about what is no message at all (`follows`)
and about messages that try to do everything at once. A message answers at most one question: `AgentActs.answer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from lightning_iterppo.customers.shop_phrases import FAMILIES, Family
from lightning_iterppo.customers.shop_products import HELD_OUT_PRODUCTS, TRAIN_PRODUCTS

MAX_WORDS: Final = 40

_DAY = r"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|the weekend|then|tomorrow)"
_DAYS = r"(?:one|two|three|four|five|a couple of|a few|[1-5]) (?:working |business |more )?days?\b"

# A strong pattern says what a message is about whatever else is in it; a weak one counts when there is no strong one.
_STRONG: Final[dict[Family, str]] = {
    "price": r"discount|percent off|\d ?% (?:off|less)|\$\d+ (?:off|less)|inst[ae]l?lments?|monthly"
    r"|(?:per|a|each) month\b|\bpay (?:\w+ ){0,2}(?:in|over|half|later)\b|spread the|worth (?:it|every|the)|price match"
    r"|\bcheaper\b|on sale|match (?:the|any|that) (?:\w+ )?price|(?:lower|reduce|cut|drop) the price|\bknock"
    r"|(?:take|get) (?:\$?\w+ ){0,2}off\b|special offer|good value|value for money|without interest"
    r"|interest[- ]free|payment plan|\bsplit the|let you have it for \$",
    "quality": r"warrant|(?<!back )guarante|\btested\b|durable|well[- ](?:made|built)|holds? up|\blasts?[.!?,]"
    r"|hard[- ]wearing|(?:high|top|great|best|good|excellent) quality|quality is|built to|made to last",
    "delivery": r"\bships?\b|shipp(?:ed|ing)|deliver|(?<!if it )arriv|overnight|courier|next[- ]day|same[- ]day"
    rf"|your door|(?:have|get|got|yours|be here|be there|with you|reach\w*) (?:\w+ ){{0,3}}(?:by|before|on) {_DAY}"
    r"|\btomorrow\b",
    "returns": r"\breturn|refund|money[- ]back|get (?:all )?your money|exchang|\bswap"
    r"|(?:30|thirty)[- ]days? (?:to|of|trial|period|return)"
    r"|(?:have|got|get|try \w+ for) (?:\w+ ){0,2}(?:30|thirty) days"
    r"|no questions asked|(?:send|bring|take|give|have) (?:it|the \w+) (?:right |straight )?back\b|change your mind"
    r"|keep the receipt",
}
_WEAK: Final[dict[Family, str]] = {
    "price": r"\bsave\b|\bdeal\b|affordable|(?:fair|best|lower|lowest|good) price|worth|for less|bargain",
    "quality": r"sturdy|\bstrong|reliable|quality|reviews?\b|made (?:of|from|with|by)|stitch|\btough\b|\bsolid\b"
    r"|\bstars?\b|\brated\b|\blast(?:s|ing)?\b(?! month| week| year)|for years|trust(?:ed)?\b|won't break"
    r"|never break",
    "delivery": rf"{_DAYS}|\d+ hours|(?:take|home|with)s? (?:\w+ )?(?:a week|today)\b|\b(?:by|before) {_DAY}"
    r"|(?:this|today|right) (?:week|now|away)|\bexpress\b|in stock|pick it up|\bsen[dt]\b",
    "returns": r"\btrial\b|month to (?:try|decide)|full month|bring it|try it|back within|unhappy|\bany reason\b",
}
# What a customer can rely on. A message about a question without it is talk, not an answer: "You can return it at your
# old address.", "We can spread the cost over six dates." and the like were found by policies in training.
_MANY = r"(?:\d+|two|three|four|five|six|seven|ten|twelve|fourteen|thirty|sixty|ninety|a few|several|a couple of)"
_FACTS: Final[dict[Family, str]] = {
    "price": r"discount|percent|\d ?%|\$\d+|dollars?\b|inst[ae]l?lments?|payments?\b|\bmonth|\bweeks?\b|interest|worth"
    r"|value|cheaper|on sale|match|lower|reduce|\bless\b|\bsave\b|(?:fair|best|good) price|offer|\bdeal\b|payment plan"
    r"|\bhalf\b|\blater\b|afford|bargain|\boff\b",
    "quality": "",  # whatever speaks to it, a warranty or a material, is something to rely on
    "delivery": rf"tomorrow|\btoday\b|tonight|overnight|(?:next|same)[- ]day|{_DAYS}"
    rf"|{_MANY} (?:working |business )?days?\b"
    r"|\bhours\b|(?:this|a|one|within the) week\b|weekend"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day|by then|right (?:now|away)|at once|express|pick it up",
    "returns": r"refund|money|\bpay (?:it |you )?back|for free|\bfree\b|no questions|exchang|\bswap"
    r"|\bany (?:time|reason)\b"
    r"|(?:within|for|after|up to|have|inside) (?:a full |a |the |full |the first )?"
    rf"(?:{_MANY}[- ])?(?:days?|weeks?|months?)\b"
    r"|full month|month to|(?:30|thirty|14|fourteen|60|sixty)[- ]days?|this (?:week|month)"
    r"|(?:no|without) (?:extra )?cost"
    r"|\bif (?:you|it)\b|keep the receipt|change your mind",
}
# "We can return it today": it is the customer who would bring it back.
_NOT_A_FACT: Final[dict[Family, str]] = {
    "returns": r"\b(?:we|i)(?:'ll| will| can| could| would| may)? return (?!your|you\b)",
}
_FACTS_RE: Final = {family: re.compile(pattern) for family, pattern in _FACTS.items()}
_NOT_A_FACT_RE: Final = {family: re.compile(pattern) for family, pattern in _NOT_A_FACT.items()}
_STRONG_RE: Final = {family: re.compile(pattern) for family, pattern in _STRONG.items()}
_WEAK_RE: Final = {family: re.compile(pattern) for family, pattern in _WEAK.items()}
# "There is no warranty", "you can't return it": said before the keyword, at most one word between.
_DENIED: Final = re.compile(
    r"\b(?:no|not|never|cannot|without any|\w+n't)(?: (?!fit|suit|like|happy|right|need|love)[\w-]+)? ?$"
)
# A question answers nothing ("Is it about delivery?"), but an offer may be put as one ("How about ten percent off?").
_OFFER: Final = re.compile(r"^\W*(?:how about|what if|would|may i offer|can i offer|could i offer|did you know|if)\b")

_CONTACT: Final = re.compile(
    r"\be-?mail|\bphone\b|\b(?:your|what|which|best|mobile) (?:\w+ )?number\b(?! of)|contact (?:details?|info\w*)"
    r"|\byour (?:full )?(?:name|address|details|contact)\b"
    r"|\b(?:reach|contact|call|text|message|write to|get back to) you\b"
    r"|where (?:can|should|shall|do) (?:i|we) (?:send|ship|deliver)|\b(?:name|you) down\b|\bsign you up"
    r"|\bcheck ?out\b(?! the| our| this)|\b(?:go|move) ahead\b"
    r"|\b(?:place|take|make|start|confirm|complete|have) (?:an|the|your|that) order"
    r"|\b(?:shall|should|can|may|could|let|do) (?:i|we|me|us) (?:\w+ )?(?:reserve|book|order|hold|pack"
    r"|wrap|ring|set|put|keep|lay|save|sell)\b"
    r"|\b(?:i'll|i will|i can|i could|we can|we'll|happy to|glad to) (?:\w+ )?(?:reserve|book|hold|pack"
    r"|wrap|ring|order|(?:put|set) (?:one|it|the [\w ]+) (?:aside|away)|keep (?:one|it))\b"
    r"|\b(?:like|want|ready|care|wish) (?:me )?to (?:\w+ )?(?:order|buy|purchase|reserve|book|hold|put"
    r"|set|pay|(?:get|take) (?:it|one))\b|\b(?:will|can|do|so) you (?:take|buy|order|reserve) (?:it|one|the)\b"
    r"|\byou(?:'ll| will) take it\b|\b(?:want|like) (?:it|one|this|this one)\?"
    r"|(?:^|[.!?,] |please |just )(?:order|buy|reserve|book|purchase)\b"
)
# Of what is talked about, not "What would you like to use as a water filter?", which a policy in training found.
_USING: Final = r"us(?:e|ing) (?:it|this|that|them|one)\b"
_NEED: Final = re.compile(
    r"\b(?:what|which)\b(?! do you think).*\b(?:for|need|looking|plan\w*|do you|doing"
    rf"|{_USING}|activity|sports?|hobby|brings?|help|find|after|interest\w*"
    r"|have in mind)\b"
    r"|\bhow (?:can|may|could) (?:i|we) (?:help|assist)"
    rf"|\b(?:how|where) .*\b{_USING}"
    r"|\bare you (?:\w+ )?(?:looking|after|shopping|planning|into|searching|hoping)\b"
    r"|\bdo you (?:\w+ )?(?:need|do|play)\b|\bis (?:it|this|that) for\b"
    r"|\banything (?:special|specific|particular|in mind|you)|\blooking for\b|\b(?:can|may) i help\b|\bin mind\b"
)
_TELL: Final = re.compile(
    r"\b(?:tell|let) me (?:\w+ )?(?:more|what|about|know what|which|a bit|a little)|\bi'd (?:like|love) to know"
)
_GREETING: Final = re.compile(
    r"\b(?:hi|hello|hey|welcome|good (?:morning|afternoon|evening|day|to see)|nice|lovely|weather|thanks?"
    r"|glad|pleasure)\b"
)
_USES: Final = re.compile(r"\b(?:" + "|".join(p.use for p in (*TRAIN_PRODUCTS, *HELD_OUT_PRODUCTS)) + r")\b")

_WORD: Final = re.compile(r"[a-z0-9$%]+(?:['-][a-z0-9]+)*")
_JUNK: Final = re.compile(r"[\[\]<>{}_\\|^~=#@*]|\b(?:customer|user|agent|assistant|system|in stock) ?:|[^\W\d_]{18,}")
_SENTENCE: Final = re.compile(r"[^.!?]+[.!?\"')]*")
_END: Final = re.compile(r"[.!?][\"')]*(?: ?[^\x00-\x7f]{1,2})?$")
_COMMON: Final = re.compile(
    r"an?|and|any|are|as|at|be|but|by|can|come|do|does|for|from|get|had|has|have|here|how|i|i'd|i'll|i'm|if|in|is"
    r"|it|it's|its|just|let|like|may|me|more|my|no|not|of|on|one|or|our|shall|so|some|that|that's|the|them|there"
    r"|they|this|to|up|us|we|we'll|we're|what|what's|when|which|who|will|with|would|yes|you|you'd|you'll|you're"
    r"|your"
)


@dataclass(frozen=True, slots=True)
class AgentActs:
    """What one agent message does.

    Args:
        asks_need: it asks what the customer needs.
        asks_contact: it asks for a contact or an order.
        greets: it greets or chats.
        products: names of the known products in it.
        topics: which questions it speaks to.
        answer: the one question that it answers with something to rely on; None when there is none, when it only
            talks about it, or when it is a speech about several.
    """

    asks_need: bool
    asks_contact: bool
    greets: bool
    products: tuple[str, ...]
    topics: frozenset[Family]
    answer: Family | None


def normalise(text: str) -> str:
    """Lower case, plain apostrophes and hyphens, single spaces."""
    plain = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    plain = re.sub("[\u2010-\u2015]", "-", plain).replace("\u201c", '"').replace("\u201d", '"').replace("\u2026", "...")
    return " ".join(plain.split())


def words(text: str) -> list[str]:
    """The words of a message in lower case."""
    return _WORD.findall(normalise(text))


def follows(text: str, earlier: Iterable[str] = (), heard: str = "") -> bool:
    """Whether a customer can follow the message at all.

    Args:
        text: the agent's message.
        earlier: the agent's earlier messages; saying one of them again is not followed.
        heard: the customer's last message; parroting it is not followed.
    """
    plain, said = normalise(text), words(text)
    if not 2 <= len(said) <= MAX_WORDS or not _END.search(plain) or _JUNK.search(plain):
        return False
    if sum(not c.isascii() for c in plain) > 2 or any(c.isalpha() and c > "\u024f" for c in plain):
        return False
    if not re.search("[a-z]", plain) or _stutters(said):
        return False
    if len(said) >= 8 and (
        len(set(said)) < 0.55 * len(said) or sum(_COMMON.fullmatch(w) is not None for w in said) < 0.12 * len(said)
    ):
        return False
    return all(words(other) != said for other in earlier) and not _parrots(said, words(heard))


def _stutters(said: Sequence[str]) -> bool:
    """A word three times in a row, or two or three words said twice in a row."""
    thrice = any(said[i] == said[i + 1] == said[i + 2] for i in range(len(said) - 2))
    return thrice or any(
        said[i : i + n] == said[i + n : i + 2 * n] for n in (2, 3) for i in range(len(said) - 2 * n + 1)
    )


def _parrots(said: Sequence[str], heard: Sequence[str]) -> bool:
    pairs = set(pairwise(said))
    return len(said) >= 3 and len(pairs & set(pairwise(heard))) >= 0.8 * len(pairs)


def understand(text: str, names: Iterable[str]) -> AgentActs:
    """The acts of a message.

    Args:
        text: the agent's message.
        names: the names of all products that can be recognised.
    """
    plain = normalise(text)
    sentences = _SENTENCE.findall(plain)
    questions = [s for s in sentences if s.rstrip("\"') ").endswith("?")]
    products = tuple(name for name in names if re.search(rf"\b{re.escape(name.lower())}s?\b", plain))
    asked = any(_NEED.search(q) or (_USES.search(q) and not products) for q in questions)
    told = " ".join(s for s in sentences if s not in questions or _OFFER.search(s))
    strong = frozenset(family for family in FAMILIES if _says(_STRONG_RE[family], told))
    weak = frozenset(family for family in FAMILIES if _says(_WEAK_RE[family], told))
    topics = strong or weak
    return AgentActs(
        asks_need=asked or _TELL.search(plain) is not None,
        asks_contact=_CONTACT.search(_PROMISED.sub(" ", plain)) is not None,
        greets=_GREETING.search(plain) is not None,
        products=products,
        topics=topics,
        answer=_answer(topics, told),
    )


# "You get your phone number" and "Looking forward to your e-mail" ask for nothing: policies in training found that they
# were taken for asking.
_PROMISED: Final = re.compile(
    r"\blook(?:ing)? forward to [\w -]+"
    r"|\byou(?:'ll| will|'d| would)? (?:\w+ )?(?:get|have|receive|return) (?:back )?(?:your|a|the) [\w ]+"
)


def _answer(topics: frozenset[Family], told: str) -> Family | None:
    """The one topic, if what is told about it is a fact."""
    if len(topics) != 1:
        return None
    (topic,) = topics
    empty = topic in _NOT_A_FACT_RE and _NOT_A_FACT_RE[topic].search(told) is not None
    return topic if not empty and _FACTS_RE[topic].search(told) else None


def _says(pattern: re.Pattern[str], plain: str) -> bool:
    return any(not _DENIED.search(plain[: match.start()]) for match in pattern.finditer(plain))
