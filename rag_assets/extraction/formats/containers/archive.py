"""Zip archives: the list of their files, which are read like attachments of a message.

Office files, OpenDocument files and books are zip containers, too, and have modules of their own.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from rag_assets.extraction.decoding import normalise
from rag_assets.extraction.document import Attachment, DocumentBuilder, ExtractedDocument, attachment_name
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.ooxml import ZIP_SIGNATURE, inflate, inflated_limit, zip_names

ZIP_MEDIA_TYPE: Final = "application/zip"

MAX_FILES: Final = 2_000

_UTF8_NAME: Final = 0x800
# What operating systems add.
_CLUTTER: Final = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")
_CONTAINERS: Final = (
    ("xl/", "an Excel file of another kind"),
    ("ppt/", "a PowerPoint file of another kind"),
    ("word/", "a Word file of another kind"),
    ("visio/", "a Visio drawing"),
    ("mimetype", "an OpenDocument file of another kind"),
)


def container_kind(names: list[str]) -> str | None:
    """Return what a container with such entries is, if it is a document and no archive."""
    kinds = (kind for start, kind in _CONTAINERS if any(name.startswith(start) for name in names))
    return next(kinds, None)


def looks_like_archive(data: bytes) -> bool:
    """Return whether the content is a zip that is no document itself."""
    names = zip_names(data) if data.startswith(ZIP_SIGNATURE) else []
    return bool(names) and container_kind(names) is None


def extract_archive(data: bytes) -> ExtractedDocument:
    """Return the names of the files as a list, and the files as attachments.

    Raises ExtractionError(too_large) if the files inflate beyond the limits, or are too many.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_clutter(entry.filename)]
    if len(entries) > MAX_FILES:
        detail = f"{len(entries)} files in the archive; the limit is {MAX_FILES}, split it"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    document = DocumentBuilder(ZIP_MEDIA_TYPE)
    attachments: dict[str, Attachment] = {}
    remaining = inflated_limit(data)
    for entry in entries:
        path = _path(entry)
        document.add_item(path)
        name = attachment_name(path, attachments)
        attachments[name] = _attachment(name, data, entry, remaining)
        remaining -= len(attachments[name].data)
    return replace(document.build(), attachments=tuple(attachments.values()))


def _is_clutter(name: str) -> bool:
    return name.startswith(_CLUTTER) or name.rpartition("/")[2] in _CLUTTER


def _path(entry: zipfile.ZipInfo) -> str:
    """Return the name of an entry. Many programs write UTF-8 without the flag for it."""
    name = entry.filename
    if not entry.flag_bits & _UTF8_NAME:
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            name = entry.filename
    return normalise(name)


def _attachment(name: str, data: bytes, entry: zipfile.ZipInfo, remaining: int) -> Attachment:
    """Return a file, or the reason why it cannot be unpacked."""
    if entry.flag_bits & 1:
        detail = "the file is encrypted in the archive; upload it without a password"
        return Attachment(name, b"", QuarantineReason.ENCRYPTED, detail)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        detail = "the archive compresses the file with an unusual method; compress it again with Deflate"
        return Attachment(name, b"", QuarantineReason.UNSUPPORTED_TYPE, detail)
    try:
        content = b"".join(_bounded(inflate(data, entry), len(data), remaining))
    except zlib.error:
        content = None
    if content is None or zlib.crc32(content) != entry.CRC:
        detail = "the file is damaged in the archive; pack it again"
        return Attachment(name, b"", QuarantineReason.MALFORMED, detail)
    return Attachment(name, content)


def _bounded(pieces: Iterator[bytes], packed: int, remaining: int) -> Iterator[bytes]:
    for piece in pieces:
        remaining -= len(piece)
        if remaining < 0:
            detail = f"{packed} bytes inflate beyond the limit; unpack the archive and upload its files"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
        yield piece
