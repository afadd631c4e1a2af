"""EPUB books: the pages of the book in reading order, each read as HTML."""

import posixpath
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from rag_assets.extraction.document import DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.containers.package import Package
from rag_assets.extraction.formats.html import extract_html
from rag_assets.extraction.formats.ooxml import ZIP_SIGNATURE, zip_names

EPUB_MEDIA_TYPE: Final = "application/epub+zip"

_CONTAINER: Final = "META-INF/container.xml"
_ENCRYPTION: Final = "META-INF/encryption.xml"
_PAGES: Final = frozenset({"application/xhtml+xml", "text/html", "application/xml"})


def looks_like_epub(data: bytes) -> bool:
    """Return whether the content is a zip with the entry that names a book's package."""
    return data.startswith(ZIP_SIGNATURE) and _CONTAINER in zip_names(data)


def extract_epub(data: bytes) -> ExtractedDocument:
    """Parse a book; raise ExtractionError if its container is unsafe to open, or its pages are encrypted."""
    package = Package(data)
    document = DocumentBuilder(EPUB_MEDIA_TYPE)
    encrypted = _encrypted(package)
    for name in _pages(package, document):
        if name in encrypted:
            detail = "the pages of the book are encrypted (DRM); upload a copy without protection"
            raise ExtractionError(QuarantineReason.ENCRYPTED, detail)
        page = extract_html(package.read(name) or b"")
        for block in page.blocks:
            document.add(block.kind, page.text[block.start : block.end], level=block.level)
    return document.build()


def _pages(package: Package, document: DocumentBuilder) -> Iterator[str]:
    """Set the title of the book, and yield the names of its pages in reading order, each once."""
    container = package.tree(_CONTAINER)
    root = None if container is None else container.find(".//{*}rootfile")
    name = "" if root is None else root.get("full-path", "")
    book = package.tree(name)
    if book is None:
        detail = "the book's package document is missing; save the book again"
        raise ExtractionError(QuarantineReason.MALFORMED, detail)
    document.title = one_line(book.findtext(".//{http://purl.org/dc/elements/1.1/}title") or "")
    items = {item.get("id"): item for item in book.iterfind("{*}manifest/{*}item")}
    seen: set[str] = set()
    for reference in book.iterfind("{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _PAGES or "nav" in item.get("properties", "").split():
            continue
        page = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(item.get("href", ""))))
        if page in package.names and page not in seen:
            seen.add(page)
            yield page


def _encrypted(package: Package) -> frozenset[str]:
    """Return the names of the encrypted parts; many books encrypt only their fonts."""
    encryption = package.tree(_ENCRYPTION)
    references = () if encryption is None else encryption.iterfind(".//{*}CipherReference")
    return frozenset(unquote(reference.get("URI", "")) for reference in references)
