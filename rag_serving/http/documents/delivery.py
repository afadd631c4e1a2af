"""Send originals to browsers. They are untrusted: nothing in them may run with the rights of the service's pages."""

import re
from collections.abc import AsyncIterator
from email.utils import format_datetime
from urllib.parse import quote

from fastapi.responses import StreamingResponse

from rag_serving.results import Document
from rag_serving.retrieval.originals import Original
from rag_serving.retrieval.source_links import object_path

_PIECE_BYTES = 2**21
_INLINE = {
    **{name: name for name in ("application/pdf", "image/bmp", "image/gif", "image/jpeg", "image/png", "image/tiff")},
    **dict.fromkeys(("text/csv", "text/markdown", "text/plain"), "text/plain"),
    "image/webp": "image/webp",
}
"""The types that a browser may show, and what they are sent as. It can run programs in HTML, SVG and XML."""
_OTHER = "application/octet-stream"
_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,100}")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_PRINTABLE = re.compile(r"[!#-~]{1,200}")


def sent(original: Original, document: Document, *, wanted: str = "", unless_changed: str = "") -> StreamingResponse:
    """Return the response with the original, or with the range that `wanted` (the Range header) names.

    `unless_changed` is the If-Range header.
    """
    headers = _headers(original, document)
    is_current = unless_changed in ("", headers.get("etag"))
    part = _requested(wanted, original.size) if is_current else None
    start, end = part or (0, original.size)
    if part is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{original.size}"
    headers["content-length"] = str(end - start)
    return StreamingResponse(_pieces(original, start, end), 200 if part is None else 206, headers)


async def _pieces(original: Original, start: int, end: int) -> AsyncIterator[bytes]:
    for at in range(start, end, _PIECE_BYTES):
        yield await original.read(at, min(at + _PIECE_BYTES, end))


def _requested(header: str, size: int) -> tuple[int, int] | None:
    """Return the first position of a range and the one past its last; None for no range, or none that is served.

    The whole object is then sent, as the specification allows.
    """
    match = _RANGE.fullmatch(header)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(size - int(last), 0), size
    return (start, end) if start < end else None


def _headers(original: Original, document: Document) -> dict[str, str]:
    path = object_path(document.source, document.path)
    is_attachment = path != document.path  # of a message or an archive, whose type the index does not know
    shown_as = None if is_attachment else _INLINE.get(document.type)
    named = document.type if not is_attachment and _TYPE.fullmatch(document.type) else _OTHER
    headers = {
        "content-type": shown_as or named,
        "content-disposition": _disposition("inline" if shown_as else "attachment", path.rpartition("/")[2]),
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
        "accept-ranges": "bytes",
        "last-modified": format_datetime(original.modified_at, usegmt=True),
    }
    if _PRINTABLE.fullmatch(original.etag):
        headers["etag"] = f'"{original.etag}"'
    if original.encoding == "gzip":
        headers["content-encoding"] = "gzip"
    if original.etag != document.etag:
        headers["x-source-changed"] = "true"
    return headers


def _disposition(kind: str, name: str) -> str:
    """Return the header as in RFC 6266: an ASCII name for old programs, then the exact one."""
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
