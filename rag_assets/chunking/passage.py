"""The passage, and the protocol of chunkers."""

from dataclasses import dataclass
from typing import Protocol

from rag_assets.extraction.document import ExtractedDocument


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document that is embedded and cited as a whole.

    `text` is `document.text[start:end]`, with offsets in characters. `heading_path` has the headings around its first
    character, outermost first; `page` is that character's page, if the format has pages. `context` is embedded in front
    of the text but never shown. If the passage is a later piece of a table, `table_header` is the table's first row.
    `tokens` counts what the model reads: context, text and special tokens.
    """

    text: str
    start: int
    end: int
    heading_path: tuple[str, ...]
    page: int | None
    tokens: int
    context: str = ""
    table_header: str = ""

    @property
    def embedded_text(self) -> str:
        """The text that is embedded."""
        return self.context + self.text


class Chunker(Protocol):
    """Cuts documents into passages."""

    @property
    def version(self) -> str:
        """Changes whenever the same document may be cut or embedded differently."""
        ...

    def chunk(self, document: ExtractedDocument) -> list[Passage]:
        """Cut a document into passages, in order."""
        ...
