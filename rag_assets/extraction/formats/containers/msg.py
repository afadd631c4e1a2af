"""Outlook messages (msg): subject, correspondents, body and attachments, like a message in the open format (eml)."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from rag_assets.extraction.document import (
    Attachment,
    BlockKind,
    DocumentBuilder,
    ExtractedDocument,
    attachment_name,
    one_line,
)
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.eml import MAX_ATTACHMENTS
from rag_assets.extraction.formats.html import extract_html
from rag_assets.extraction.formats.legacy.ole import MESSAGE, stream_of
from rag_assets.extraction.formats.plain import text_document

MSG_MEDIA_TYPE: Final = "application/vnd.ms-outlook"


def looks_like_msg(data: bytes) -> bool:
    """Return whether the content is an Office container with the properties of a message."""
    return stream_of(data) == MESSAGE


def extract_msg(data: bytes) -> ExtractedDocument:
    """Parse a message; raise ExtractionError(too_large) if it has too many attachments."""
    import oxmsg

    message: Any = oxmsg.Message.load(io.BytesIO(data))
    subject = one_line(message.subject)
    document = DocumentBuilder(MSG_MEDIA_TYPE, subject)
    document.add(BlockKind.HEADING, subject, level=1)
    document.add(BlockKind.PARAGRAPH, "\n".join(_headers(message)))
    _add_body(document, message)
    attachments: dict[str, Attachment] = {}
    for attached in message.attachments:
        name = attachment_name(attached.file_name or "attachment", attachments)
        content = attached.file_bytes
        if content is None:
            detail = "an Outlook item inside the message; save it as a file of its own"
            attachments[name] = Attachment(name, b"", QuarantineReason.UNSUPPORTED_TYPE, detail)
        else:
            attachments[name] = Attachment(name, content)
        if len(attachments) > MAX_ATTACHMENTS:
            detail = f"more than {MAX_ATTACHMENTS} attachments; upload them as separate files"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    return replace(document.build(), attachments=tuple(attachments.values()))


def _headers(message: Any) -> Iterator[str]:
    if message.sender:
        yield f"From: {one_line(message.sender)}"
    recipients = (
        one_line(f"{person.name} <{person.email_address}>".removesuffix("<>")) for person in message.recipients
    )
    if named := [recipient for recipient in recipients if recipient]:
        yield f"To: {', '.join(named)}"
    if message.sent_date is not None:
        yield f"Date: {message.sent_date.isoformat(' ', 'minutes')}"


def _add_body(document: DocumentBuilder, message: Any) -> None:
    plain = message.body or ""
    body = text_document(plain) if plain.strip() else extract_html((message.html_body or "").encode(errors="replace"))
    for block in body.blocks:
        # One level below the subject.
        level = min(block.level + 1, 6) if block.level else 0
        document.add(block.kind, body.text[block.start : block.end], level=level)
