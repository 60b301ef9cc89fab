"""The guard of a promotion that looks at languages: does the candidate still speak those of the reference?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.evaluation.guards import Guard
from lightning_iterppo.extras import need

#: A text counts where one language has this probability: one of a few words rarely does, and is left out.
CERTAIN: Final = 0.9
#: Texts that must count on either side: fewer say little about a share.
LEAST: Final = 10


def languages(*groups: Sequence[str]) -> list[Counter[str]]:
    """How many texts of each group are of which language (ISO 639 codes), without those of which it is not certain.

    By py3langid, a naive Bayes classifier over bytes (Lui and Baldwin 2012, "langid.py").

    Raises:
        ConfigError: py3langid is not installed.
    """
    langid = need("py3langid.langid", "to tell languages apart", "language")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    found = ([identifier.classify(text) for text in texts] for texts in groups)
    return [Counter(language for language, probability in each if probability >= CERTAIN) for each in found]


def language_guard(policy: Sequence[str], reference: Sequence[str], most: float) -> Guard:
    """Compares the languages of what a policy and the reference say in the same states.

    Args:
        policy: responses.
        reference: responses.
        most: share of responses that would have to change their language for the shares to be alike, at most.
    """
    name = "language"
    try:
        counts, expected = languages(policy, reference)
    except ConfigError as missing:
        return Guard(name, None, str(missing), {})
    figures = {"policy": dict(sorted(counts.items())), "reference": dict(sorted(expected.items())), "at_most": most}
    if min(counts.total(), expected.total()) < LEAST:
        says = (
            f"the language is certain of {counts.total()} and {expected.total()} of the candidate's and the "
            f"reference's responses, too few to compare ({LEAST})"
        )
        return Guard(name, None, says, figures)
    shift = sum(abs(counts[key] / counts.total() - expected[key] / expected.total()) for key in counts | expected) / 2
    says = f"{shift:.3f} of the responses are of another language than the reference's (at most {most:g})"
    return Guard(name, shift <= most, says, {**figures, "shift": shift})
