"""Citations: which passages an answer cites, and which numbers it invented."""

import re
from collections.abc import Sequence

from rag_serving.results import Citation, Hit

_MARK = re.compile(
    r"```.*?```|`[^`\n]*`|[\[【]\s*(?:sources?\s+)?(?P<numbers>\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\s*[\]】]",
    re.IGNORECASE | re.DOTALL,
)
"""Code, which is left alone, or a citation."""


def checked_citations(text: str, sources: int) -> tuple[str, set[int], int]:
    """Return the text with citations normalized to ``[2]``, the cited numbers, and the count of invented ones.

    ``[1, 3]``, ``[1-3]``, ``[Source 2]`` and ``【2】`` are recognized. Invented citations are removed from the text.
    Code is left alone, also without marks: the 0 of ``items[0]``, for no source has this number.
    """
    named: set[int] = set()
    invented: set[int] = set()

    def checked(mark: re.Match[str]) -> str:
        if mark["numbers"] is None:
            return mark[0]
        numbers: list[int] = []
        for part in re.split(r"\s*[,;]\s*", mark["numbers"]):
            first, *rest = (int(number) for number in re.split(r"\s*[–-]\s*", part))
            numbers += range(first, (rest[-1] if rest else first) + 1)
        if mark[0] == "[0]" and re.search(r"[\w)\]]$", text[: mark.start()]):
            return mark[0]
        real = [number for number in dict.fromkeys(numbers) if 1 <= number <= sources]
        named.update(real)
        invented.update(number for number in numbers if not 1 <= number <= sources)
        return "".join(f"[{number}]" for number in real)

    cleaned = _MARK.sub(checked, text)
    if invented:
        cleaned = re.sub(r"[ \t]+(?=[.,;:!?](?:\s|$))", "", cleaned)
        cleaned = re.sub(r"(?<=\S)[ \t]{2,}(?=\S)", " ", cleaned)
    return cleaned.strip(), named, len(invented)


def source_citations(hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """Return all hits as citations, numbered as in the prompt."""
    return citations_of(hits, hits)


def citations_of(hits: Sequence[Hit], cited: Sequence[Hit]) -> tuple[Citation, ...]:
    """Return the cited hits as citations, numbered by their place among `hits`."""
    numbers = {hit.chunk_id: number for number, hit in enumerate(hits, start=1)}
    return tuple(
        Citation(
            number=numbers[hit.chunk_id],
            **{name: getattr(hit, name) for name in Citation.model_fields if name != "number"},
        )
        for hit in cited
    )
