"""Make small OpenDocument files, books and archives for tests."""

from __future__ import annotations

import io
import zipfile

NAMESPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in {
        "office": "office", "text": "text", "table": "table", "draw": "drawing", "style": "style",
        "presentation": "presentation",
    }.items()
)  # fmt: skip


def a_zip(entries: dict[str, str | bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an archive; its first entry is stored, as OpenDocument and EPUB demand of the media type."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for number, (name, content) in enumerate(entries.items()):
            archive.writestr(name, content, zipfile.ZIP_STORED if number == 0 else compression)
    return buffer.getvalue()


def an_opendocument(kind: str, body: str, *, styles: str = "", **parts: str) -> bytes:
    """Return a file of the kind text, spreadsheet or presentation."""
    content = (
        f"<office:document-content {NAMESPACES}><office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
    )
    return a_zip({"mimetype": f"application/vnd.oasis.opendocument.{kind}", "content.xml": content, **parts})


def an_epub(pages: dict[str, str], *, spine: list[str] | None = None, **parts: str) -> bytes:
    """Return a book titled Travel; `spine` is the reading order."""
    items = "".join(f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in pages)
    order = "".join(f'<itemref idref="{name}"/>' for name in spine or pages)
    book = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>Travel</dc:title></metadata><manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    container = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    files = {f"OEBPS/{name}": text for name, text in pages.items()}
    return a_zip({"mimetype": "application/epub+zip", "META-INF/container.xml": container, "OEBPS/book.opf": book,
                  **files, **parts})  # fmt: skip
