"""PowerPoint presentations (pptx, pptm, slide shows and templates): one page per slide, in reading order.

The title comes first, then the shapes in drawing order, which screen readers follow, too, then the notes and the
comments. Hidden slides are included, because they have the answers to expected questions.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.formats.drawings import A as _A
from rag_assets.extraction.formats.drawings import add_drawing, drawing_relations
from rag_assets.extraction.formats.drawings import drawing_paragraphs as _paragraphs
from rag_assets.extraction.formats.ooxml import R, part_root, related_part, related_root, safe_package, walk

PPTX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.presentationml.presentation"

_P: Final = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_MC: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"

_TITLES: Final = frozenset({"title", "ctrTitle"})
# Placeholders that repeat on every slide.
_FURNITURE: Final = frozenset({"dt", "ftr", "hdr", "sldNum"})
# Placeholders whose paragraphs have bullets by default.
_BULLETED: Final = frozenset({"body", "obj", ""})
_BULLETS: Final = (f"{_A}buChar", f"{_A}buAutoNum", f"{_A}buBlip")
_SHAPES: Final = frozenset({f"{_P}sp", f"{_P}graphicFrame", f"{_P}cxnSp"})
_MAX_LEVEL: Final = 9
_NO_TITLES: Final = frozenset({"", "powerpoint presentation", "powerpoint-präsentation", "presentation", "untitled"})


def extract_pptx(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if its container is unsafe to open (see `ooxml`)."""
    package = safe_package(data)

    import pptx

    presentation = pptx.Presentation(io.BytesIO(package))
    document = DocumentBuilder(PPTX_MEDIA_TYPE)
    for number, slide in enumerate(_slides(presentation.part), start=1):
        _SlideReader(slide, number, document).read()
    core_title = one_line(presentation.core_properties.title or "")
    if core_title.lower() not in _NO_TITLES:
        document.title = core_title
    return document.build()


def _slides(part: Any) -> Iterator[Any]:
    """Yield the parts of a presentation's slides in order; skip slides that are listed but missing."""
    for slide in part._element.iter(f"{_P}sldId"):  # `presentation.slides` raises if a slide is missing
        related = related_part(part, slide.get(f"{R}id"))
        if related is not None and getattr(related, "_element", None) is not None:
            yield related


@dataclass(slots=True)
class _SlideReader:
    """Reads the shapes of one slide into the blocks of a page."""

    part: Any
    page: int
    document: DocumentBuilder
    _layout: dict[str, Any] = field(default_factory=dict[str, Any])

    def read(self) -> None:
        tree = self.part._element.find(f"{_P}cSld/{_P}spTree")
        if tree is None:
            return
        shapes = list(_shapes(tree))
        self._layout = self._layout_placeholders()
        titles = [shape for shape in shapes if _placeholder(shape)[0] in _TITLES]
        for shape in titles:
            level = 1 if _placeholder(shape)[0] == "ctrTitle" else 2
            words = " ".join(text for _, text in _paragraphs(shape))
            self.document.add(BlockKind.HEADING, one_line(words, len(words)), level=level, page=self.page)
        for shape in shapes:
            if shape not in titles:
                self._shape(shape)
        for shape in self._notes():
            if _placeholder(shape)[0] == "body":
                text = "\n".join(text for _, text in _paragraphs(shape))
                self.document.add(BlockKind.PARAGRAPH, text, page=self.page)

        self._comments()

    def _comments(self) -> None:
        for relation in self.part.rels.values():
            if not relation.reltype.endswith("/comments") or relation.is_external:
                continue
            root = part_root(relation.target_part)
            if root is None:
                continue
            # Old comments are plain text, and new ones have paragraphs.
            texts = [element.text or "" for element in root.iter(f"{_P}text")]
            for text in texts or [text for _, text in _paragraphs(root)]:
                self.document.add(BlockKind.PARAGRAPH, f"Comment: {text}" if text.strip() else "", page=self.page)

    def _layout_placeholders(self) -> dict[str, Any]:
        for relation in self.part.rels.values():
            if relation.reltype.endswith("/slideLayout") and not relation.is_external:
                return {_placeholder(shape)[1]: shape for shape in relation.target_part._element.iter(f"{_P}sp")}
        return {}

    def _notes(self) -> Iterator[Any]:
        for relation in self.part.rels.values():
            if relation.reltype.endswith("/notesSlide") and not relation.is_external:
                yield from relation.target_part._element.iter(f"{_P}sp")

    def _shape(self, shape: Any) -> None:
        if shape.tag == f"{_P}graphicFrame":
            self._graphic(shape)
            return
        kind, index = _placeholder(shape)
        if kind in _FURNITURE:
            return
        lines = list(_paragraphs(shape))
        bulleted = kind in _BULLETED and len(lines) > 1
        for paragraph, text in lines:
            if self._has_bullet(shape, paragraph, index, bulleted):
                self.document.add_item(text, depth=_depth(paragraph), page=self.page)
            else:
                self.document.add(BlockKind.PARAGRAPH, text, page=self.page)
        self.document.end_list()

    def _has_bullet(self, shape: Any, paragraph: Any, index: str, default: bool) -> bool:
        """Return whether the paragraph, else its shape's list style, else the layout's sets a bullet."""
        said_by = [paragraph.find(f"{_A}pPr")]
        level = f"{_P}txBody/{_A}lstStyle/{_A}lvl{min(_depth(paragraph) + 1, _MAX_LEVEL)}pPr"
        said_by += [holder.find(level) for holder in (shape, self._layout.get(index)) if holder is not None]
        for properties in said_by:
            if properties is None:
                continue
            if properties.find(f"{_A}buNone") is not None:
                return False
            if any(properties.find(bullet) is not None for bullet in _BULLETS):
                return True
        return default

    def _graphic(self, frame: Any) -> None:
        for table in frame.iter(f"{_A}tbl"):
            rows = (
                table_row(" ".join(text for _, text in _paragraphs(cell)) for cell in row.iterchildren(f"{_A}tc"))
                for row in table.iterchildren(f"{_A}tr")
            )
            self.document.add(BlockKind.TABLE, "\n".join(filter(None, rows)), page=self.page)
        for identifier in drawing_relations(frame):
            drawing = related_root(self.part, identifier)
            if drawing is not None:
                add_drawing(self.document, drawing, self.page)


def _shapes(tree: Any) -> Iterator[Any]:
    """Yield the shapes with text, also those in groups; of alternatives the first, else the fallback."""

    def inside(element: Any) -> Any:
        if element.tag == f"{_MC}AlternateContent":
            choice = element.find(f"{_MC}Choice")
            return element.find(f"{_MC}Fallback") if choice is None else choice
        return element if element.tag == f"{_P}grpSp" else None

    return (element for element in walk(tree, inside) if element.tag in _SHAPES)


def _placeholder(shape: Any) -> tuple[str | None, str]:
    """Return kind and index of a placeholder; '' is the kind for any object, None that of other shapes."""
    found = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph")
    return (None, "none") if found is None else (found.get("type", ""), found.get("idx", "0"))


def _depth(paragraph: Any) -> int:
    properties = paragraph.find(f"{_A}pPr")
    level = "0" if properties is None else properties.get("lvl", "0")
    return int(level) if level.isdecimal() else 0
