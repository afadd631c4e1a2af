"""What is embedded in front of a passage because its own text may not say it: names and headings, a table's header."""

from collections.abc import Iterator, Sequence
from typing import Final

from rag_assets.chunking.boundaries import sentence_starts
from rag_assets.chunking.tokens import DocumentTokens
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument, one_line
from rag_assets.options import ContextName

CONTEXT_VERSIONS: Final[dict[ContextName, str]] = {
    "none": "none-1",
    "headings": "headings-2",
    "neighbours": "neighbours-2",
}
NEIGHBOUR_TOKENS: Final = 20
_NEIGHBOUR_CHARACTERS: Final = 1000
_HEADING_CHARACTERS: Final = 400
_TABLE_HEADER_CHARACTERS: Final = 1000


def table_header(document: ExtractedDocument, block: Block, start: int) -> str:
    """Return the first row of the table if a passage that starts there is a later piece of it, else an empty text."""
    if block.kind is not BlockKind.TABLE:
        return ""
    first_line = document.text[block.start : block.end].partition("\n")[0]
    if start < block.start + len(first_line):
        return ""
    return one_line(first_line, _TABLE_HEADER_CHARACTERS).strip("| ")


def contexts(
    name: ContextName, names: Sequence[str], header: str, section_start: int, tokens: DocumentTokens, start: int
) -> Iterator[str]:
    """Yield possible contexts of the passage that starts there, the longest first.

    `names` has the names and headings that the passage belongs to, outermost first.
    """
    if name == "neighbours" and not header:
        yield from _neighbours(tokens, section_start, start)
        return
    shown = list(dict.fromkeys(one_line(word, _HEADING_CHARACTERS) for word in names if word))
    if name == "headings":
        for first in range(len(shown)):
            yield _lines(" > ".join(shown[first:]), header)
    while header:
        yield _lines(header)
        header = header[: len(header) // 2].rpartition(" | ")[0]


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines if line)


def _neighbours(tokens: DocumentTokens, section_start: int, start: int) -> Iterator[str]:
    low = max(section_start, start - _NEIGHBOUR_CHARACTERS)
    for cut in sentence_starts(tokens.text, low, start):
        if tokens.count(cut, start) <= NEIGHBOUR_TOKENS:
            yield tokens.text[cut:start].lstrip()
