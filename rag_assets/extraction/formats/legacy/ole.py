"""The binary container (OLE) of old Office files: what is inside, judged by the names of its streams."""

from typing import Final

from rag_assets.extraction.errors import ExtractionError, QuarantineReason

OLE_SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

MESSAGE: Final = "__properties_version1.0"
WORD: Final = "WordDocument"
POWERPOINT: Final = "PowerPoint Document"
EXCEL: Final = "Workbook"
VISIO: Final = "VisioDocument"
ENCRYPTED: Final = "EncryptedPackage"

# A file may have others inside, so the kinds that usually have some come first.
_STREAMS: Final = (ENCRYPTED, MESSAGE, WORD, POWERPOINT, EXCEL, VISIO)


def stream_of(data: bytes) -> str:
    """Return the stream that tells the kind of file; empty for other files and for unknown containers."""
    if not data.startswith(OLE_SIGNATURE):
        return ""
    return next((stream for stream in _STREAMS if stream.encode("utf-16-le") in data), "")


def refuse_encrypted(data: bytes) -> None:
    """Raise ExtractionError(encrypted) if the container holds an encrypted Office file."""
    if stream_of(data) == ENCRYPTED:
        detail = "the Office file needs a password; upload a copy without it"
        raise ExtractionError(QuarantineReason.ENCRYPTED, detail)
