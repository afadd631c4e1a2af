"""Text recognition (OCR) of images and scanned PDF pages by Tesseract.

`RAG_OCR` turns it on, and `RAG_OCR_LANGUAGES` names the languages as Tesseract does (``eng+deu``). The program gets the
image and returns the text through pipes, because parser processes may not write files.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, has_words
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

IMAGE_MEDIA_TYPE: Final = "image/*"

_SIGNATURES: Final = (b"\x89PNG", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_RESOLUTION: Final = 200
"""Dots per inch of a rendered page."""
_MAX_PIXELS: Final = 25_000_000
_SECONDS: Final = 60.0
"""Time after which no further page of a document is recognised."""


def recogniser() -> str | None:
    """Return the path of Tesseract; None if it is not installed or recognition is off."""
    return shutil.which("tesseract") if os.environ.get("RAG_OCR") else None


def can_read_image(data: bytes) -> bool:
    """Return whether the content is an image that Tesseract reads, and Tesseract is available."""
    return data.startswith(_SIGNATURES) and recogniser() is not None


def extract_image(data: bytes) -> ExtractedDocument:
    """Recognise the text of an image; raise ExtractionError(malformed) if Tesseract cannot read it."""
    document = DocumentBuilder(IMAGE_MEDIA_TYPE)
    _add(document, _recognised(data), None)
    return document.build()


def with_recognised_pages(document: ExtractedDocument, data: bytes) -> ExtractedDocument:
    """Return the document of a PDF with the recognised text of pages that have no other text."""
    if recogniser() is None:
        return document
    blocks = {page: list(found) for page, found in groupby(document.blocks, key=lambda block: block.page)}
    builder = DocumentBuilder(document.media_type, document.title)
    stop = time.monotonic() + _SECONDS
    left_out: list[int] = []
    for number, page in enumerate(_pages(data), start=1):
        for block in blocks.get(number, ()):
            builder.add(block.kind, document.text[block.start : block.end], level=block.level, page=number)
        if number in blocks:
            continue
        if time.monotonic() > stop:
            left_out.append(number)
        else:
            _add(builder, _recognised(_rendered(page)), number)
    if left_out:
        note = f"[The scanned pages from page {left_out[0]} on were not recognised; split the file]"
        builder.add(BlockKind.PARAGRAPH, note)
    return builder.build()


def _add(document: DocumentBuilder, text: str, page: int | None) -> None:
    if has_words(text):
        document.add(BlockKind.PARAGRAPH, "[Text recognised by OCR]", page=page)
        for paragraph in text.split("\n\n"):
            document.add(BlockKind.PARAGRAPH, paragraph, page=page)


def _recognised(image: bytes) -> str:
    """Return the text of an image, with empty lines between paragraphs."""
    command = [str(recogniser()), "stdin", "stdout", "-l", os.environ.get("RAG_OCR_LANGUAGES", "eng")]
    done = subprocess.run(command, input=image, capture_output=True, check=False)  # noqa: S603
    if done.returncode != 0:
        detail = (
            "Tesseract cannot read it; check that it has the languages of RAG_OCR_LANGUAGES, or save the image again"
        )
        raise ExtractionError(QuarantineReason.MALFORMED, detail)
    return done.stdout.decode(errors="replace").replace("\f", "\n\n")


def _pages(data: bytes) -> Iterator[Any]:
    import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

    pdf: Any = pypdfium2.PdfDocument(data)
    try:
        for page in pdf:
            yield page
            page.close()
    finally:
        pdf.close()


def _rendered(page: Any) -> bytes:
    """Return a page as a grey image in the PGM format."""
    scale = _RESOLUTION / 72
    area = page.get_width() * page.get_height() * scale**2
    bitmap: Any = page.render(scale=scale * min(1.0, (_MAX_PIXELS / max(area, 1)) ** 0.5), grayscale=True)
    pixels = memoryview(bitmap.buffer)
    rows = (bytes(pixels[row * bitmap.stride : row * bitmap.stride + bitmap.width]) for row in range(bitmap.height))
    return b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + b"".join(rows)
