"""Which passages have exactly what a question names: a code, a number, a word in capitals, a title, a file's name.

A name counts only if few documents have it. A number or a word in capitals must also put the passage first in the
full-text ranking, because a question about other things may contain a rare one; a code as it is written need not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rag_serving.lake.search.parameters import RARE_DOCUMENTS
from rag_serving.lake.search.words import DEFAULT_LANGUAGE, question_words, title_words

Row = Mapping[str, Any]


def named_exactly(question: str, rows: Sequence[Row]) -> set[str]:
    """Return the ids of the rows with what the question names; `rows` is the full-text ranking, best first.

    A document that has the name as its own comes before those that mention it.
    """
    titled = _titled(question, rows)
    if titled:
        return titled
    asked = question_words(question, ())
    if asked.codes:
        called = [row for row in rows if all(_is_called(row, code) for code in asked.codes)]
        written = [row for row in rows if all(code in row["text"] for code in asked.codes)]
        for some in (called, written):
            if _are_rare(some):
                return {row["chunk_id"] for row in some}
    found: set[str] = set()
    sought = [names for names in (asked.names, *((joined,) for joined in asked.joined)) if names]
    words = [frozenset[str](row.get("words", "").split()) for row in rows] if sought else []
    for wanted in sought:
        has = [all(name in having for name in wanted) for having in words]
        if not all(has) and _are_rare(row for row, holds in zip(rows, has, strict=True) if holds):
            first = next(place for place, holds in enumerate(has) if not holds)
            found |= {row["chunk_id"] for row in rows[:first]}
    return found


def _titled(question: str, rows: Sequence[Row]) -> set[str]:
    """Return the ids of the rows whose document has a title or name that the question consists of, or mostly."""
    by_title: dict[tuple[str, ...], list[Row]] = {}
    checked: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for row in rows:
        language = row.get("language") or DEFAULT_LANGUAGE
        names = (language, *names_of(row))
        if names not in checked:
            asked = title_words(question, language)
            titles = {title_words(name, language) for name in names[1:]}
            checked[names] = {title for title in titles if 2 * len(title) > len(asked) and _contains(asked, title)}
        for title in checked[names]:
            by_title.setdefault(title, []).append(row)
    for _, titled in sorted(by_title.items(), key=lambda item: -len(item[0])):
        if _are_rare(titled):
            return {row["chunk_id"] for row in titled}
    return set()


def names_of(row: Row) -> tuple[str, ...]:
    """Return the title of a row's document, and its file's name with and without the extension."""
    name = str(row["source"]).rpartition("/")[2]
    return (str(row.get("title") or ""), name, name.rpartition(".")[0])


def _is_called(row: Row, code: str) -> bool:
    return any(code in name for name in names_of(row))


def _contains(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return bool(part) and any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))


def _are_rare(rows: Iterable[Row]) -> bool:
    documents = {row["doc_id"] for row in rows}
    return 0 < len(documents) <= RARE_DOCUMENTS
