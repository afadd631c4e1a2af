"""Whether the retrieved passages are relevant enough to answer from."""

import re
from collections.abc import Sequence

from rag_serving.results import Hit

RELEVANCE_FLOORS = {"5b33b5e9079a0ca014ca348bd0c101a9": 0.29}
"""Cosine below which passages do not answer a question, by fingerprint of the embedder.

Measured by ``python -m benchmarks.quality evidence``; that of the packaged model refuses 0.3 % of answerable questions.
"""
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Japanese, Chinese


def is_below_relevance_floor(question: str, hits: Sequence[Hit], floor: float) -> bool:
    """Return whether no passage reaches the cosine `floor` and none shares half of the question's words.

    Words are compared because a model that does not know the question's language gives every passage a low cosine.
    """
    if not hits:
        return True
    if any(hit.score is None or hit.score >= floor for hit in hits):
        return False
    return not shares_words(question, [hit.text for hit in hits])


def shares_words(question: str, texts: Sequence[str]) -> bool:
    """Return whether a text contains half of the question's words; true if the question has none."""
    asked = _terms(question)
    return not asked or any(2 * len(asked & _terms(text)) >= len(asked) for text in texts)


def _terms(text: str) -> set[str]:
    """Return the words of more than three letters; for scripts without spaces, the pairs of adjacent characters."""
    terms: set[str] = set()
    for word in re.findall(r"\w+", text.lower()):
        if _UNSPACED.search(word):
            terms.update(word[place : place + 2] for place in range(len(word) - 1))
        elif len(word) > 3:
            terms.add(word)
    return terms


_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "and are at can could does for from have how i many may much my of should the their they this to what when "
        "where which who why with you your",
    )
)
"""Words that most English questions have, and few of other languages."""
_NOT_LATIN = re.compile("[^\x00-\u024f\u1e00-\u20cf]")


def is_readable(question: str, read: Sequence[str] | None, *, keywords: bool = True) -> bool:
    """Return whether an embedder of these languages (ISO 639-1, None for any) may read the question.

    Only English is recognized, by its most frequent words. Without one, ASCII counts as English `keywords`, or not.
    """
    if read is None or "en" not in read:
        return True
    if _NOT_LATIN.search(question):
        return False
    words = re.findall(r"[^\W\d_]+", question.casefold())
    return not _ENGLISH.isdisjoint(words) or (keywords and question.isascii())
