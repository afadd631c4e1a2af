"""What every chunker makes: the passage, and the protocol by which the pipeline cuts documents into them."""

from dataclasses import dataclass
from typing import Protocol

from rag_assets.extraction.document import ExtractedDocument


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document that is embedded and cited as one.

    `text` is `document.text[start:end]`, offsets in characters. `heading_path` names the section that the
    passage begins in, outermost first, with that section's own heading. `page` is the page of its first
    character, where the format has pages. `context` is put before the text where it is embedded, and shown
    nowhere. `tokens` counts what the model sees: context, text and special tokens.
    """

    text: str
    start: int
    end: int
    heading_path: tuple[str, ...]
    page: int | None
    tokens: int
    context: str = ""

    @property
    def embedded_text(self) -> str:
        return self.context + self.text


class Chunker(Protocol):
    """Cuts documents into passages; equal versions cut equal documents equally."""

    @property
    def version(self) -> str: ...

    def chunk(self, document: ExtractedDocument) -> list[Passage]: ...
