"""E-mail messages (eml, and pages saved as mht): subject, correspondents, body, invitations and attachments.

Signed messages are read without checking their signature.

The standard library's parser only gets what it reads in bounded time: headers are truncated, and the number of lines
times parts is limited, because it compares every line with the boundary of every open part.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from email import policy
from email.message import EmailMessage, Message
from email.parser import BytesParser
from typing import Any, Final

from rag_assets.extraction.decoding import decode, normalise, refuse_oversized
from rag_assets.extraction.document import (
    Attachment,
    BlockKind,
    DocumentBuilder,
    ExtractedDocument,
    attachment_name,
    one_line,
)
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.data.calendar import events
from rag_assets.extraction.formats.html import extract_html
from rag_assets.extraction.formats.plain import text_document
from rag_assets.extraction.formats.smime import signed_content

EML_MEDIA_TYPE: Final = "message/rfc822"
MAX_ATTACHMENTS: Final = 200
_MAX_HEADER_CHARACTERS: Final = 8000
_MAX_COMPARISONS: Final = 50_000_000
_MAX_NAME: Final = 120
_HEAD_BYTES: Final = 16 * 1024
_MAX_UNWRAPPED: Final = 5
_MAX_STUB_BYTES: Final = 4096
_STUB_SHARE: Final = 0.5
_WORD = re.compile(r"\w+")

_HEADER_LINE = re.compile(rb"([A-Za-z][A-Za-z0-9-]{0,60}):")
_SENT: Final = frozenset({b"from", b"received", b"return-path", b"sender"})
_BY_PROGRAM: Final = frozenset({b"message-id", b"mime-version", b"received", b"return-path"})
_MULTIPART = re.compile(rb"^content-type[ \t]*:", re.IGNORECASE | re.MULTILINE)

_SHOWN_HEADERS: Final = ("From", "To", "Cc", "Date")
# Signatures have no text.
_SIGNATURES: Final = frozenset({
    "application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature", "application/pgp-keys",
})  # fmt: skip
_BODIES: Final = ("text/plain", "text/html")
_CALENDARS: Final = frozenset({"text/calendar", "application/ics"})
_SEALED: Final = frozenset({"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"})
_SUFFIXES: Final = {"text/html": ".html", "text/plain": ".txt", "message/rfc822": ".eml"}


def looks_like_eml(data: bytes) -> bool:
    """Return whether the content starts with the headers of a message that a mail program wrote."""
    names: set[bytes] = set()
    for line in data[:_HEAD_BYTES].splitlines():
        if not line:
            break
        if line[:1] in (b" ", b"\t") and names:
            continue
        match = _HEADER_LINE.match(line)
        if match is None:
            return False
        names.add(match[1].lower())
    return bool(names & _SENT) and bool(names & _BY_PROGRAM)


def extract_eml(data: bytes) -> ExtractedDocument:
    """Parse a message; raise ExtractionError if it is too_large, or encrypted for its recipient."""
    message = _parsed(data)
    subject = one_line(_header(message, "Subject"))
    document = DocumentBuilder(EML_MEDIA_TYPE, subject)
    document.add(BlockKind.HEADING, subject, level=1)
    shown = ((name, one_line(_header(message, name))) for name in _SHOWN_HEADERS)
    document.add(BlockKind.PARAGRAPH, "\n".join(f"{name}: {value}" for name, value in shown if value))
    attachments: dict[str, Attachment] = {}
    invitations: set[bytes] = set()
    for part, is_body in _leaves(message):
        if is_body and part.get_content_type() in _SEALED:
            detail = "the message is encrypted (S/MIME, PGP); upload a decrypted copy"
            raise ExtractionError(QuarantineReason.ENCRYPTED, detail)
        if is_body:
            _add_body(document, part)
            continue
        if part.get_content_type() in _CALENDARS:
            calendar = _payload(part)
            if calendar not in invitations:  # most programs send it a second time as an attachment
                invitations.add(calendar)
                for event in events(decode(calendar, declared=part.get_content_charset())):
                    document.add(BlockKind.PARAGRAPH, event)
            continue
        attachment = _attachment(part, attachments)
        attachments[attachment.name] = attachment
        if len(attachments) > MAX_ATTACHMENTS:
            detail = f"more than {MAX_ATTACHMENTS} attachments; upload them as separate files"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    return replace(document.build(), attachments=tuple(attachments.values()))


def _parsed(data: bytes) -> Message:
    refuse_oversized(data)
    if data.count(b"\n") * sum(1 for _ in _MULTIPART.finditer(data)) > _MAX_COMPARISONS:
        raise ExtractionError(QuarantineReason.TOO_LARGE, "the message has too many parts for its length; split it")
    return BytesParser(policy=_BoundedHeaders()).parsebytes(data)


class _BoundedHeaders(policy.EmailPolicy):
    """Truncates headers: parsing addresses and parameters takes time quadratic in their length."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_MAX_HEADER_CHARACTERS]


def _header(message: Message, name: str) -> str:
    try:
        value = message.get(name)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        # The parser of structured headers fails on odd ones; the raw header is still useful.
        value = next((raw for key, raw in message.raw_items() if key.lower() == name.lower()), None)
    return "" if value is None else normalise(str(value))


def _leaves(message: Message) -> Iterator[tuple[Message, bool]]:
    """Yield the parts to read in order, with True for those of the body.

    Of alternatives, the body is the plain text if it has the words of the HTML, else the HTML. Pictures of a body and
    signatures are skipped.
    """
    pending: list[tuple[Message, bool, bool]] = [(message, True, False)]
    unwrapped = 0
    while pending:
        part, may_be_body, related = pending.pop()
        kind = part.get_content_type()
        if kind in _SEALED:
            signed = signed_content(_payload(part)) if may_be_body and unwrapped < _MAX_UNWRAPPED else None
            if signed is None:
                yield part, may_be_body
            else:
                unwrapped += 1
                pending.append((_parsed(signed), True, False))
        elif kind in _CALENDARS or (kind == "message/rfc822" and part is not message):
            yield part, False
        elif part.is_multipart():
            chosen = _chosen(part) if kind == "multipart/alternative" else None
            pending += [
                (
                    child,
                    may_be_body and (chosen is None or child is chosen),
                    related or (kind == "multipart/related" and index > 0),
                )
                for index, child in reversed(list(enumerate(_children(part))))
            ]
        elif kind.startswith("text/") and not _is_attached(part):
            if may_be_body:
                yield part, kind in _BODIES
        elif kind in _SIGNATURES or _is_decoration(part, kind, related):
            continue
        else:
            yield part, False


def _children(part: Message) -> list[Message]:
    payload: Any = part.get_payload() if part.is_multipart() else []
    return list(payload)


def _chosen(alternatives: Message) -> Message | None:
    """Return the alternative to read; its text may be nested (HTML with pictures is a part of its own).

    A plain text that has few of the words of the HTML only says that there is more to see.
    """
    best: dict[str, Message] = {}
    texts: dict[str, Message] = {}
    for child in _children(alternatives):
        for part in child.walk():
            kind = part.get_content_type()
            if kind in _BODIES and not _is_attached(part) and _payload(part).strip():
                best.setdefault(kind, child)
                texts.setdefault(kind, part)
    if len(best) > 1 and _is_stub(texts["text/plain"], texts["text/html"]):
        return best["text/html"]
    return best.get("text/plain") or best.get("text/html")


def _is_stub(plain: Message, html: Message) -> bool:
    data = _payload(plain)
    if len(data) > _MAX_STUB_BYTES:
        return False
    words = set(_WORD.findall(decode(data, declared=plain.get_content_charset()).casefold()))
    try:
        page = extract_html(_payload(html), declared=html.get_content_charset())
    except ExtractionError:
        return False
    shown = set(_WORD.findall(page.text.casefold()))
    return len(words & shown) < _STUB_SHARE * len(shown)


def _is_attached(part: Message) -> bool:
    return part.get_content_disposition() == "attachment" or bool(part.get_filename())


def _is_decoration(part: Message, kind: str, related: bool) -> bool:
    """Return whether the part is a picture or another resource that a body refers to."""
    if part.get_content_disposition() == "attachment":
        return False
    return related or (kind.startswith("image/") and part.get("Content-ID") is not None)


def _payload(part: Message) -> bytes:
    payload: Any = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _add_body(document: DocumentBuilder, part: Message) -> None:
    data = _payload(part)
    if not data.strip():
        return
    charset = part.get_content_charset()
    if part.get_content_type() == "text/html":
        body = extract_html(data, declared=charset)
    else:
        body = text_document(decode(data, declared=charset))
    for block in body.blocks:
        # One level below the subject.
        level = min(block.level + 1, 6) if block.level else 0
        document.add(block.kind, body.text[block.start : block.end], level=level)


def _attachment(part: Message, taken: dict[str, Attachment]) -> Attachment:
    kind = part.get_content_type()
    name = one_line(normalise(part.get_filename() or "").replace("/", "_").replace("\\", "_"), _MAX_NAME)
    if kind == "message/rfc822":
        forwarded = next(iter(_children(part)), None) or EmailMessage()
        # As bytes, to be read like any other attachment. The old policy does not parse the headers.
        data = forwarded.as_bytes(policy=policy.compat32)
        subject = one_line(_header(forwarded, "Subject").replace("/", "_"), _MAX_NAME)
        name = name or (f"{subject}.eml" if subject else "message.eml")
        name = name if name.lower().endswith(".eml") else f"{name}.eml"
    else:
        data = _payload(part)
        name = name or "attachment" + _SUFFIXES.get(kind, "." + kind.rpartition("/")[2].rpartition("-")[2])
    return Attachment(attachment_name(name, taken), data)
