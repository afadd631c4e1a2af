"""Jupyter notebooks: Markdown cells, code cells, and the beginning of their text outputs."""

from typing import Any, Final, cast

from rag_assets.extraction.decoding import decode
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.data.json import parse_json
from rag_assets.extraction.formats.markdown import extract_markdown, heading_words

NOTEBOOK_MEDIA_TYPE: Final = "application/x-ipynb+json"

_MAX_OUTPUT: Final = 2_000


def extract_notebook(data: bytes) -> ExtractedDocument:
    """Parse a notebook; raise ExtractionError if it is not JSON with a list of cells."""
    notebook = _mapping(parse_json(decode(data)))
    cells = _items(notebook.get("cells")) or _cells_of_version_3(notebook)
    if not cells and "cells" not in notebook:
        raise ExtractionError(QuarantineReason.MALFORMED, "the file has no notebook cells; save the notebook again")
    document = DocumentBuilder(NOTEBOOK_MEDIA_TYPE)
    for cell in map(_mapping, cells):
        source = _text(cell.get("source", cell.get("input")))
        if cell.get("cell_type") == "markdown":
            _add_markdown(document, source)
        elif cell.get("cell_type") == "code":
            document.add(BlockKind.CODE, source)
            for output in map(_mapping, _items(cell.get("outputs"))):
                document.add(BlockKind.CODE, _output(output))
        else:
            document.add(BlockKind.PARAGRAPH, source)
    return document.build()


def _cells_of_version_3(notebook: dict[str, Any]) -> list[object]:
    return [cell for sheet in _items(notebook.get("worksheets")) for cell in _items(_mapping(sheet).get("cells"))]


def _add_markdown(document: DocumentBuilder, source: str) -> None:
    cell = extract_markdown(source.encode(errors="replace"))
    for block in cell.blocks:
        text = cell.text[block.start : block.end]
        document.add(block.kind, text, level=block.level)
        if block.kind is BlockKind.HEADING and not document.title:
            document.title = heading_words(text)


def _output(output: dict[str, Any]) -> str:
    """Return the text of an output; pictures and HTML have a plain form beside them."""
    kind = output.get("output_type")
    if kind in ("error", "pyerr"):
        return one_line(f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}", _MAX_OUTPUT)
    plain = _mapping(output.get("data")).get("text/plain")
    text = _text(output.get("text") if plain is None else plain)
    return text if len(text) <= _MAX_OUTPUT else text[:_MAX_OUTPUT] + " …"


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _text(value: object) -> str:
    """Return a text that is stored whole or as its lines."""
    return "".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value or "")
