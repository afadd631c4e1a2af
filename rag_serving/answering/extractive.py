"""Answers without a language model: the part of the best passage that answers the question, quoted.

Units (`quotable`) are ranked by their cosine with the question, by the share of the question's words that they or
their headings have (rare words count more), and by the rank of their passage. How near the best one is decides whether
it is quoted as the answer, quoted as the nearest passage, or not at all.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from rag_serving.answering.citations import citations_of
from rag_serving.answering.evidence_floor import RELEVANCE_FLOORS, is_readable
from rag_serving.answering.named_scope import is_named
from rag_serving.answering.prompts import NOT_FOUND
from rag_serving.answering.quotable import Unit, quotable_units
from rag_serving.cache.guards import lexicon
from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.search.words import DEFAULT_LANGUAGE, indexed_words, question_words
from rag_serving.results import HISTORY_NOT_READ, MODEL_UNAVAILABLE, Answer, Hit, Quote

_EXTRACT_NOTE = "Quoted from the documents (no language model is configured):"
_DEGRADED_NOTE = "Quoted from the documents (the language model did not answer):"
_NEAR_NOTE = "No passage clearly answers this question. The nearest one:"

_MOST_EMBEDDED = 40
"""Units that are embedded: those that score best without their cosine."""
_WORDS, _RANK, _NUMBER = 0.5, 0.4, 0.2
"""Weights of the question's words, the passage's score, and a number in answer to a question for one, beside a weight
of 1 for the cosine. Chosen on half of the questions that `benchmarks.quality extracts` asks."""
_KEY = 0.2
"""Added to a row whose first cell is in the question."""
_UNREAD_COSINE, _UNREAD_WORDS = 0.3, 1.0
"""Weights for a question in a language that the embedder does not read."""
_SURE, _NEAR = 0.72, 0.5
"""Cosine plus half the share of words from which on a unit is the answer, and from which on it is the nearest one."""
_SURE_BY_WORDS = 0.4
"""Share of words from which on a unit is the answer if its cosine does not tell."""
_AS_NEAR = 0.05
"""A second passage is quoted if its best unit scores at most this much less than the first one's."""
_ROWS_NEAR = 0.12
"""Other rows or items are quoted if they score at most this much less than the best one."""
_MOST_ROWS = 4
_CONTEXT = 300
"""Characters up to which sentences around the match are quoted with it."""
_LONGEST = 700

_NUMBER_IN_TEXT = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|none|nobody|never)\b", re.IGNORECASE
)
_ASKS_FOR_NUMBER = re.compile(
    r"\bhow (?:long|many|much|often|old|far|fast|quick|soon|big|large|high|tall|deep|heavy|late|early)"
    r"|\bwhen\b|\bwhat (?:time|date|year|percentage|amount|price|number|cost|fee|rate|limit)"
    r"|\b(?:price|limit|rate|cost|deadline|maximum|minimum|fee)\b|\bat what\b|\bup to\b"
    r"|\b(?:by|until|after|before|below|above) (?:what|which|when)\b"
    r"|\bwie (?:viel|viele|lange|oft|hoch)\b|\bwann\b|\bcombien\b|\bquand\b|\bcu[aá]nt|\bcu[aá]ndo\b|\bquant[oa]"
    r"|\bquando\b|\bhvor (?:mange|mye|lenge|ofte)\b|\bnår\b|何|いくら|いつ|どれくらい",
    re.IGNORECASE,
)
_SIGNS = "?!.,;:()[]\"'“”‘’"
_HIRAGANA = re.compile("[\u3040-\u309f]")
_SURFACE = re.compile(r"[^\W_][\w'’&+-]*")


def extract(
    embedder: Embedder,
    question: str,
    hits: Sequence[Hit],
    *,
    read: Sequence[str] | None = None,
    degraded: tuple[str, ...] = (),
) -> Answer:
    """Return the part of the best passage that answers the question; of kind ``none`` if no part clearly does.

    `read` has the languages of the embedder (ISO 639-1); None for any.
    """
    candidates = _candidates(_of_named_regions(question, hits))
    if not candidates:
        return not_found(question, degraded=degraded)
    readable = is_readable(question, read)
    known = readable and embedder.identity.fingerprint in RELEVANCE_FLOORS
    asked = _Asked(question, hits, candidates, readable=readable, comparable=known)
    vector = embedder.embed_query(question)
    cosines = _cosines(embedder, vector, asked)
    scores = asked.scores(cosines)
    best = int(np.argmax(scores))
    titled = _titled_cosine(embedder, vector, asked, best)
    nearness = asked.nearness(candidates[best], max(float(cosines[best]), titled))
    if nearness < _NEAR:
        return not_found(question, degraded=degraded)
    sure = nearness >= _SURE and not asked.is_only_a_place and HISTORY_NOT_READ not in degraded
    chosen = [best, *(_as_near(candidates, scores, best) if sure else [])]
    quotes = tuple(_quote(row, candidates, scores, hits) for row in chosen)
    numbers = {quote.number for quote in quotes}
    cited = citations_of(hits, [hit for number, hit in enumerate(hits, start=1) if number in numbers])
    note = _DEGRADED_NOTE if any(mark.startswith(MODEL_UNAVAILABLE) for mark in degraded) else _EXTRACT_NOTE
    return Answer(
        question=question,
        text="\n\n".join([note if sure else _NEAR_NOTE, *(_shown(quote, hits) for quote in quotes)]),
        citations=cited,
        quotes=quotes,
        kind="extract" if sure else "none",
        model=None,
        degraded=degraded,
    )


def not_found(question: str, *, degraded: tuple[str, ...] = ()) -> Answer:
    """Return the answer for a question that the documents do not answer."""
    return Answer(question=question, text=NOT_FOUND, citations=(), kind="none", model=None, degraded=degraded)


# --- which unit answers ------------------------------------------------------------------------------------------

_Candidate = tuple[int, Unit]
"""The place of a passage among the hits, and a unit of it."""


def _of_named_regions(question: str, hits: Sequence[Hit]) -> list[tuple[int, Hit]]:
    """Return the hits with their places: those of the regions that the question names, or all."""
    placed = list(enumerate(hits))
    return [(place, hit) for place, hit in placed if is_named(hit.shard.partition("/")[0], question)] or placed


def _candidates(hits: Sequence[tuple[int, Hit]]) -> list[_Candidate]:
    found: list[_Candidate] = []
    for place, hit in hits:
        units = quotable_units(hit.text, (hit.title, *hit.heading_path), hit.table_header)
        if not units and hit.text.strip():
            units = [Unit(" ".join(hit.text.split()), "sentence", 0)]
        found += [(place, unit) for unit in units]
    return found


def _cosines(embedder: Embedder, vector: npt.NDArray[np.float32], asked: "_Asked") -> npt.NDArray[np.float32]:
    """Return the cosine of each candidate with the question; 0 for those that are not embedded."""
    cosines = np.zeros(len(asked.candidates), np.float32)
    chosen = np.argsort(-asked.scores(cosines), kind="stable")[:_MOST_EMBEDDED]
    rows: list[int] = chosen.tolist()
    texts = [asked.candidates[row][1].searched(asked.title_of(row))[:_LONGEST] for row in rows]
    cosines[chosen] = embedder.embed_documents(texts) @ vector
    return cosines


def _titled_cosine(embedder: Embedder, vector: npt.NDArray[np.float32], asked: "_Asked", row: int) -> float:
    """Return the cosine of a candidate under the title of its document, which tells what "the cause" is of."""
    title = asked.title_of(row)
    text = f"{title}\n{asked.candidates[row][1].searched(title)}"[:_LONGEST]
    return float(embedder.embed_documents([text])[0] @ vector)


@dataclass(frozen=True)
class _Asked:
    """A question, and what of it the passages have."""

    question: str
    hits: Sequence[Hit]
    candidates: "Sequence[_Candidate]"
    readable: bool
    """Whether the embedder reads its language."""
    comparable: bool
    """Whether cosines of this embedder were measured, so that they tell how near a passage is."""

    def title_of(self, row: int) -> str:
        """Return the title of a candidate's document."""
        return self.hits[self.candidates[row][0]].title

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The stems that say what is asked, each once."""
        stop = lexicon.words("stop_words") | lexicon.words("light_words")
        telling = [word for word in self.question.split() if word.strip(_SIGNS).casefold() not in stop]
        found = question_words(" ".join(telling), (DEFAULT_LANGUAGE,))
        kept = [
            word
            for word in dict.fromkeys(found.words)
            if word not in found.joined
            and not (word.isupper() and word.casefold() in found.words)
            and not (_HIRAGANA.search(word) and len(word) > 1)
        ]
        return tuple(kept) or found.words or (self.question,)

    @cached_property
    def _every_word(self) -> frozenset[str]:
        return _words(self.question)

    @property
    def is_only_a_place(self) -> bool:
        """Whether nothing is asked but about a region or department: "and in Oslo?"."""
        return set(self.words) <= _words(*(hit.shard for hit in self.hits))

    @cached_property
    def _in_hits(self) -> Sequence[frozenset[str]]:
        return [_words(*_names(hit), hit.table_header, hit.text) for hit in self.hits]

    @cached_property
    def has_unknown_codes(self) -> bool:
        """Whether it has a code that no passage found has."""
        codes = question_words(self.question, (DEFAULT_LANGUAGE,)).codes
        texts = [" ".join((*_names(hit), hit.table_header, hit.text)).casefold() for hit in self.hits]
        return any(all(code.casefold() not in text for text in texts) for code in codes)

    def _lacks_names(self, place: int) -> bool:
        """Return whether a passage lacks a name that the question has, such as a place."""
        return any(not _words(name) & self._in_hits[place] for name in self._capitalised())

    def _lacks_number(self, unit: Unit) -> bool:
        """Return whether a row of a table lacks a number that the question has: it may be a row for another one."""
        asked = {word for word in self._every_word if word.isdecimal()}
        return unit.kind == "row" and not asked <= _words(unit.text)

    def _capitalised(self) -> list[str]:
        """Return the words in the question that have a capital, except the first; none if every long one has."""
        surfaces = _SURFACE.findall(self.question)
        long = [word for word in surfaces if len(word) > 3]
        if len(long) > 3 and all(word[0].isupper() for word in long):
            return []
        stop = lexicon.words("stop_words")
        return [word for word in surfaces[1:] if word[0].isupper() and word.casefold() not in stop]

    @cached_property
    def _with_names(self) -> Sequence[frozenset[str]]:
        """The words of each candidate, with those of its headings and its shard."""
        return [
            _words(unit.searched(""), self.hits[place].title, self.hits[place].shard) for place, unit in self.candidates
        ]

    @cached_property
    def _weights(self) -> Mapping[str, float]:
        """A weight for each word: the rarer it is among the candidates, the more it says."""
        counts = {word: sum(word in words for words in self._with_names) for word in self.words}
        most = len(self.candidates) + 1
        return {word: math.log(1 + most / (count + 0.5)) for word, count in counts.items()}

    def _share(self, words: frozenset[str]) -> float:
        """Return the weight of the question's words that are among `words`, as a share of all."""
        return sum(weight for word, weight in self._weights.items() if word in words) / sum(self._weights.values())

    def scores(self, cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the score of each candidate; the answer has the highest."""
        shares = np.array([self._share(words) for words in self._with_names])
        ranks = np.array([self.hits[place].fused for place, _ in self.candidates])
        cosine, share = (1.0, _WORDS) if self.readable else (_UNREAD_COSINE, _UNREAD_WORDS)
        total = cosine * cosines + share * shares + _RANK * ranks
        total = total + [_KEY * self._has_key(unit) for _, unit in self.candidates]
        if _ASKS_FOR_NUMBER.search(self.question):
            total = total + [_NUMBER * bool(_NUMBER_IN_TEXT.search(unit.text)) for _, unit in self.candidates]
        return total

    def _has_key(self, unit: Unit) -> bool:
        key = _words(unit.key)
        return bool(key) and key <= self._every_word

    def nearness(self, candidate: _Candidate, cosine: float) -> float:
        """Return how near a candidate is, to compare with `_SURE` and `_NEAR`."""
        place, unit = candidate
        share = self._share(self._in_hits[place])
        by_words = _SURE if share >= _SURE_BY_WORDS else _NEAR
        near = cosine + _WORDS * share if self.comparable else by_words
        doubtful = self.has_unknown_codes or self._lacks_names(place) or self._lacks_number(unit)
        return min(near, (_SURE + _NEAR) / 2) if doubtful else near


def _words(*texts: str) -> frozenset[str]:
    return frozenset(indexed_words(texts, DEFAULT_LANGUAGE).split())


def _names(hit: Hit) -> Iterable[str]:
    return hit.title, hit.shard, *hit.heading_path, document_name(hit.source)


def document_name(source: str) -> str:
    """Return the file name in a source URI."""
    return unquote(PurePosixPath(source).name)


# --- what is quoted with it --------------------------------------------------------------------------------------


def _as_near(candidates: Sequence[_Candidate], scores: npt.NDArray[np.float64], best: int) -> list[int]:
    """Return the best unit of the other passages, if it is about as near."""
    others = [row for row, (place, _) in enumerate(candidates) if place != candidates[best][0]]
    second = max(others, key=lambda row: float(scores[row]), default=None)
    if second is None or scores[second] < scores[best] - _AS_NEAR:
        return []
    return [] if candidates[second][1].text == candidates[best][1].text else [second]


def _quote(best: int, candidates: Sequence[_Candidate], scores: npt.NDArray[np.float64], hits: Sequence[Hit]) -> Quote:
    place, unit = candidates[best]
    together = [row for row, (other, one) in enumerate(candidates) if other == place and one.block == unit.block]
    if unit.kind in ("row", "item"):
        kept = _rows_near(best, together, scores)
        separator = "\n- "
    else:
        kept = _sentences_around(best, together, candidates, scores)
        separator = " "
    before = _with_gaps(candidates, [row for row in kept if row <= best], separator).removesuffix(unit.text)
    after = _with_gaps(candidates, [row for row in kept if row >= best], separator).removeprefix(unit.text)
    listed = len(kept) > 1 and separator != " "
    lead_in = unit.lead_in + (separator if listed else "\n" if unit.kind == "code" else " ") if unit.lead_in else ""
    if listed and not lead_in:
        lead_in = separator.lstrip()
    return Quote(
        number=place + 1,
        heading_path=_heading_path(hits[place], unit),
        before=lead_in + before,
        match=unit.text if len(unit.text) <= _LONGEST else f"{unit.text[:_LONGEST].rsplit(' ', 1)[0]} …",
        after=after,
    )


def _rows_near(best: int, together: Sequence[int], scores: npt.NDArray[np.float64]) -> list[int]:
    """Return the rows or items to quote, in order."""
    rows = sorted(together, key=lambda row: -scores[row])[:_MOST_ROWS]
    return sorted(row for row in rows if row == best or scores[row] >= scores[best] - _ROWS_NEAR)


def _with_gaps(candidates: Sequence[_Candidate], rows: Sequence[int], separator: str) -> str:
    """Join units, with an ellipsis for those left out between them."""
    text = ""
    for place, row in enumerate(rows):
        if place:
            text += separator if row == rows[place - 1] + 1 else f"{separator}…{separator}"
        text += candidates[row][1].text
    return text


def _heading_path(hit: Hit, unit: Unit) -> tuple[str, ...]:
    """Return the headings above a unit: those of its passage, whose last one ends where the unit's own begins."""
    own = tuple(one for one in unit.headings if one not in hit.heading_path)
    return (*(hit.heading_path[:-1] if own and len(hit.heading_path) > 1 else hit.heading_path), *own)


def _sentences_around(
    best: int, together: Sequence[int], candidates: Sequence[_Candidate], scores: npt.NDArray[np.float64]
) -> list[int]:
    """Return the sentences to quote: those that the best one refers to, and better neighbours while there is room."""
    first = last = together.index(best)
    while first > 0 and candidates[together[first]][1].needs_previous:
        first -= 1
    while True:
        size = sum(len(candidates[row][1].text) for row in together[first : last + 1])
        fitting = [
            place
            for place in (first - 1, last + 1)
            if 0 <= place < len(together) and size + len(candidates[together[place]][1].text) <= _CONTEXT
        ]
        if not fitting:
            return list(together[first : last + 1])
        added = max(fitting, key=lambda place: float(scores[together[place]]))
        first, last = min(first, added), max(last, added)


def _shown(quote: Quote, hits: Sequence[Hit]) -> str:
    hit = hits[quote.number - 1]
    headings = [heading for heading in quote.heading_path if heading != hit.title]
    where = " › ".join([hit.title or document_name(hit.source), *headings])
    marked = f"{quote.before}**{quote.match}**{quote.after}" if quote.before or quote.after else quote.match
    quoted = marked if "\n" in marked else f"“{marked}”"
    return f"{quoted} [{quote.number}]\n— {where} ({document_name(hit.source)}, {hit.shard})"
