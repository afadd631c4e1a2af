"""Questions made from passages by rules, each with its key sentence, paraphrases and near misses.

The key sentence answers the base question. Paraphrases ask for the same; near misses differ in a number, a name, a
negation, a direction or a scope word, and no document answers them. Questions made from different sentences may still
be alike, as people's are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.guards.rewordings import rewordings
from rag_serving.answering.quotable import quotable_units
from rag_serving.cache.normalization import normalise

_FEWEST, _MOST = 4, 14
"""Least and most words of the part of a sentence that is made into a question."""
_NO_SUBJECTS = re.compile(
    r"this|that|these|those|it|there|here|he|she|they|we|you|i|my|what|which|who|all|each|every|most|many|some|any|both|"
    r"other|another|if|when|while|because|as|where|whether|so|often|sometimes|although|though|since|after|before|"
    r"ensure|for|in|on|by|with|at|once|until|unless|even|and|but|please|note|from|to|remind|only|below|above"
)
_NO_VERBS = re.compile(r"do|are|have|had|were|will|would|can|should|could|may|must|also|currently|then|now|\w+ed")
_PEOPLE = "You|Employees|Staff|Team members|Managers|Supervisors"
_NEGATED = re.compile(r"\b(?:not|never|no)\b|n['’]t\b", re.IGNORECASE)
_CLAUSE = re.compile(r"\b(?:that|which|who|if|you|we|it)\b")
_PLAIN = re.compile(r"^[A-Za-z][\w ,;:'’()%$&/.\-]+[.!]$")
_TURNED = ((r"\byou are\b", "I am"), (r"\byour\b", "my"), (r"\byourself\b", "myself"), (r"\byou\b", "I"))
_NUMBER = re.compile(r"\b\d{1,4}\b(?![\w.,%]*\d)")
_NAME = re.compile(r"(?<=[a-z] )[A-Z][a-z]{3,}\b")
_SIDES = (
    ("before", "after"),
    ("more", "less"),
    ("first", "last"),
    ("new", "old"),
    ("internal", "external"),
    ("start", "end"),
    ("add", "remove"),
    ("public", "private"),
)


@dataclass(frozen=True, slots=True)
class Base:
    """A question, its paraphrases, and the sentence that answers it."""

    number: int
    shard: str
    source: str
    wordings: tuple[str, ...]
    """The question itself, then its paraphrases."""
    key: str | None
    """None for a near miss, which no document answers."""
    near: int | None = None
    """The base question of a near miss."""


@dataclass(slots=True)
class Questions:
    """Base questions by number; no two share a wording."""

    bases: list[Base] = field(default_factory=list[Base])
    by_wording: dict[str, Base] = field(default_factory=dict[str, Base])

    def add(self, shard: str, source: str, wordings: Sequence[str], key: str | None, near: int | None = None) -> bool:
        """Add a base question with its unused wordings; return False, adding nothing, if the first one is used."""
        free = {_key(text): text for text in reversed(wordings) if _key(text) not in self.by_wording}
        if _key(wordings[0]) not in free:
            return False
        kept = tuple(text for text in wordings if free.get(_key(text)) == text)
        base = Base(len(self.bases), shard, source, kept, key, near)
        self.bases.append(base)
        self.by_wording.update((_key(text), base) for text in kept)
        return True

    def of(self, question: str) -> Base:
        """Return the base question of a wording."""
        return self.by_wording[_key(question)]


def _key(text: str) -> str:
    """Return the same key for all restyled forms of a question, which may be in capitals throughout."""
    return normalise(text).casefold()


def squeezed(text: str) -> str:
    """Return the text with single spaces, as sentences are compared."""
    return " ".join(text.split())


def asked_of(sentence: str) -> list[str]:
    """Return wordings of a question that the sentence answers, the most natural one first."""
    if not _PLAIN.match(sentence):
        return []
    if found := re.match(r"(?:If|When|Whenever) (you\b[^,]+), \w", sentence):
        part = _turned(found[1])
        return _fitting(part, f"What should I do if {part}?", f"What do I do when {part}?", f"{part}, what now?")
    if found := re.match(r"(?:In order to|To) ([a-z]+ [^,]+), \w", sentence):
        part = _turned(found[1])
        return _fitting(part, f"How do I {part}?", f"How can I {part}?", f"What is the way to {part}?")
    if found := re.match(rf"(?:{_PEOPLE}) (?:can|may) ([a-z]+ .+)[.!]$", sentence):
        part = _turned(found[1])
        return _fitting(part, f"Can I {part}?", f"Am I allowed to {part}?", f"May I {part}?")
    if found := re.match(rf"(?:{_PEOPLE}) (?:must|should|need to|have to) ([a-z]+ .+)[.!]$", sentence):
        part = _turned(found[1])
        return _fitting(part, f"Do I have to {part}?", f"Am I required to {part}?", f"Is it necessary to {part}?")
    found = re.match(r"We ([a-z]+ .+)[.!]$", sentence)
    if found and not _NO_VERBS.fullmatch(found[1].split()[0]):
        part = found[1]
        return _fitting(part, f"Do we {part}?", f"Is it true that we {part}?", f"I heard that we {part}, right?")
    if found := re.match(r"((?:The |Our |An? )?[A-Za-z][\w -]{3,60}?) (is|are) .{20,}$", sentence):
        subject, verb = found[1], found[2]
        first, words = subject.split()[0].lower(), len(subject.split())
        if (
            _NO_SUBJECTS.fullmatch(first)
            or not 3 <= words <= 9
            or re.search(r"\b(?:that|which|who|if|you|we|it)\b", subject)
        ):
            return []
        subject = subject[:1].lower() + subject[1:] if first in ("the", "our", "a", "an") else subject
        return [f"What {verb} {subject}?", f"Can you explain what {subject} {verb}?", f"What is meant by {subject}?"]
    return []


def near_misses(question: str, names: Sequence[str], places: Sequence[str], draw: random.Random) -> list[str]:
    """Return questions that look like this one and ask for something else."""
    found: list[str] = []
    if match := _NUMBER.search(question):
        other = str(int(match[0]) + draw.choice((1, 2, 5, 10)))
        found.append(question[: match.start()] + other + question[match.end() :])
    if (match := _NAME.search(question)) and len(names) > 1:
        other = draw.choice([name for name in names if name != match[0]])
        found.append(question[: match.start()] + other + question[match.end() :])
    for one, other in _SIDES:
        for old, new in ((one, other), (other, one)):
            changed = re.sub(rf"\b{old}\b", new, question, count=1)
            if changed != question:
                found.append(changed)
    for opening, negated in (
        ("What should I do if I ", "What should I do if I do not "),
        ("Do I have to ", "Do I not have to "),
        ("Can I ", "Can I not "),
        ("Do we ", "Do we not "),
    ):
        if question.startswith(opening) and not _NEGATED.search(question):
            found.append(negated + question.removeprefix(opening))
    if question.startswith("How do I "):
        found.append(f"{question.rstrip('?')} without approval?")
    found.append(f"{question.rstrip('?')} in {draw.choice(places)}?")
    draw.shuffle(found)
    return [text for text in found if normalise(text) != normalise(question)]


def made_from(
    passages: Iterable[tuple[str, str, str]], wanted: int, near: int, places: Sequence[str], seed: int
) -> Questions:
    """Make `wanted` base questions from (shard, source, text) passages, and `near` near misses of them.

    A key sentence occurs in only one passage, so that nothing else answers its question.
    """
    draw = random.Random(seed)
    rows = [(shard, source, squeezed(text), text) for shard, source, text in passages]
    candidates: list[tuple[str, str, str, list[str]]] = []
    seen: dict[str, int] = {}
    for shard, source, _, text in rows:
        for sentence in dict.fromkeys(unit.text for unit in quotable_units(text)):
            seen[sentence] = seen.get(sentence, 0) + 1
            if (wordings := asked_of(sentence)) and squeezed(sentence) == sentence:
                candidates.append((shard, source, sentence, wordings))
    draw.shuffle(candidates)
    questions = Questions()
    names = sorted({name for *_, wordings in candidates for name in _NAME.findall(wordings[0])})
    for shard, source, sentence, wordings in candidates:
        if len(questions.bases) == wanted:
            break
        if seen[sentence] == 1:
            questions.add(shard, source, [*wordings, *rewordings(wordings[0], 3)], sentence)
    order = list(questions.bases)
    draw.shuffle(order)
    for base in order:
        if len(questions.bases) - len(order) >= near:
            break
        for text in near_misses(base.wordings[0], names, places, draw)[:2]:
            questions.add(base.shard, base.source, [text], None, base.number)
    return questions


def _turned(part: str) -> str:
    for old, new in _TURNED:
        part = re.sub(old, new, part)
    return part


def _fitting(part: str, *wordings: str) -> list[str]:
    return list(wordings) if _FEWEST <= len(part.split()) <= _MOST else []
