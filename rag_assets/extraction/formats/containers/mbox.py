"""Mailboxes (mbox): the list of their subjects; the messages are read like attachments of one."""

import re
from collections.abc import Iterator
from dataclasses import replace
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Final

from rag_assets.extraction.document import Attachment, DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

MBOX_MEDIA_TYPE: Final = "application/mbox"

MAX_MESSAGES: Final = 2_000

# A message starts with an envelope line that the headers follow.
_ENVELOPE = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\n]{1,500}\n(?=[!-9;-~]{1,80}:)")
_ESCAPED = re.compile(rb"^>(>*From )", re.MULTILINE)
_SUBJECT = re.compile(rb"^subject:[ \t]*([^\n]{0,500})", re.IGNORECASE | re.MULTILINE)
_HEAD_BYTES: Final = 16 * 1024


def looks_like_mbox(data: bytes) -> bool:
    """Return whether the content starts with the envelope line and the headers of a message."""
    return data.startswith(b"From ") and _ENVELOPE.match(data[:1024]) is not None


def extract_mbox(data: bytes) -> ExtractedDocument:
    """Return the subjects as a list, and the messages as attachments; raise ExtractionError if they are too many."""
    document = DocumentBuilder(MBOX_MEDIA_TYPE)
    attachments: list[Attachment] = []
    for number, message in enumerate(_messages(data), start=1):
        if number > MAX_MESSAGES:
            detail = f"more than {MAX_MESSAGES} messages in the mailbox; split it"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
        name = f"message {number}"
        document.add_item(_subject(message) or name)
        attachments.append(Attachment(f"{name}.eml", message))
    return replace(document.build(), attachments=tuple(attachments))


def _messages(data: bytes) -> Iterator[bytes]:
    start = None
    for envelope in _ENVELOPE.finditer(data):
        if start is not None:
            yield _ESCAPED.sub(rb"\1", data[start : envelope.start()])
        start = envelope.end()
    if start is not None:
        yield _ESCAPED.sub(rb"\1", data[start:])


def _subject(message: bytes) -> str:
    found = _SUBJECT.search(message[:_HEAD_BYTES])
    if found is None:
        return ""
    encoded = found[1].decode(errors="replace")
    try:
        return one_line(str(make_header(decode_header(encoded))))
    except (HeaderParseError, LookupError, ValueError):
        return one_line(encoded)
