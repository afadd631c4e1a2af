"""Headers and ranges of originals."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from fastapi.responses import StreamingResponse

from rag_serving.http.documents.delivery import sent
from rag_serving.results import Document
from rag_serving.retrieval.originals import Original

DATA = bytes(range(256)) * 20_000  # more than one piece
MOMENT = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def read(start: int, end: int) -> bytes:
    return DATA[start:end]


def original(size: int = len(DATA), etag: str = "1-2-3", encoding: str = "") -> Original:
    return Original(size, etag, MOMENT, read, encoding)


def document(path: str = "lease.pdf", kind: str = "application/pdf", attachment: str = "") -> Document:
    return Document(
        source=f"file:///srv/Oslo/legal/x{attachment}",
        title="Lease",
        shard="Oslo/legal",
        path=path,
        doc_id="0" * 32,
        type=kind,
        modified_at=MOMENT,
        etag="1-2-3",
        stale=False,
        pages=None,
        passages=(),
        next=None,
        total=1,
    )


def body_of(response: StreamingResponse) -> bytes:
    async def joined() -> bytes:
        return b"".join([bytes(part) async for part in response.body_iterator if not isinstance(part, str)])

    return asyncio.run(joined())


def test_an_original_is_sent_in_pieces_with_its_length_and_state() -> None:
    response = sent(original(), document())
    assert body_of(response) == DATA
    headers = response.headers
    assert headers["content-length"] == str(len(DATA))
    assert (headers["etag"], headers["last-modified"]) == ('"1-2-3"', "Fri, 01 May 2026 12:00:00 GMT")
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert "x-source-changed" not in headers
    assert sent(original(etag="4-5-6"), document()).headers["x-source-changed"] == "true"


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-", 0, len(DATA)),
        ("bytes=10-19", 10, 20),
        ("bytes=5000000-9999999", 5_000_000, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=-9999999", 0, len(DATA)),
    ],
)
def test_a_range_is_sent_with_its_place(header: str, start: int, end: int) -> None:
    response = sent(original(), document(), wanted=header, unless_changed='"1-2-3"')
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert response.headers["content-length"] == str(end - start)
    assert body_of(response) == DATA[start:end]


@pytest.mark.parametrize(
    "header", ["", "bytes=-", "bytes=-0", "bytes=7-3", "bytes=9999999-", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b"]
)
def test_other_ranges_are_ignored(header: str) -> None:
    response = sent(original(), document(), wanted=header)
    assert (response.status_code, response.headers["content-length"]) == (200, str(len(DATA)))
    assert "content-range" not in response.headers


def test_a_range_of_an_object_that_changed_since_the_caller_saw_it_is_ignored() -> None:
    assert sent(original(), document(), wanted="bytes=0-9", unless_changed='"other"').status_code == 200


def test_an_empty_original_is_sent_whole() -> None:
    response = sent(original(size=0), document(), wanted="bytes=0-")
    assert (response.status_code, response.headers["content-length"], body_of(response)) == (200, "0", b"")


@pytest.mark.parametrize(
    ("kind", "sent_as", "disposition"),
    [
        ("application/pdf", "application/pdf", "inline"),
        ("image/png", "image/png", "inline"),
        ("text/plain", "text/plain", "inline"),
        ("text/markdown", "text/plain", "inline"),
        ("text/html", "text/html", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("application/xml", "application/xml", "attachment"),
        ("application/xhtml+xml", "application/xhtml+xml", "attachment"),
        ("application/msword", "application/msword", "attachment"),
        ("text/html\r\nset-cookie: a=b", "application/octet-stream", "attachment"),
        ("", "application/octet-stream", "attachment"),
    ],
)
def test_only_types_in_which_nothing_runs_are_shown_by_the_browser(kind: str, sent_as: str, disposition: str) -> None:
    headers = sent(original(), document(kind=kind)).headers
    assert (headers["content-type"], headers["content-disposition"].partition(";")[0]) == (sent_as, disposition)


def test_the_message_of_an_attachment_is_saved_under_its_own_name() -> None:
    headers = sent(original(), document("mail.eml#lease.pdf", attachment="#lease.pdf")).headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment; filename=\"mail.eml\"; filename*=UTF-8''mail.eml"


@pytest.mark.parametrize(
    "name", ['le"ase.pdf', "Leie Ø 契約.pdf", "a\r\nset-cookie: a=b.pdf", "a;b=c.pdf", "100%.pdf", "it's \\ here.pdf"]
)
def test_a_file_name_reaches_the_browser_exactly_and_cannot_add_a_header(name: str) -> None:
    value = sent(original(), document(f"folder/{name}")).headers["content-disposition"]
    parts = re.fullmatch(r"""inline; filename="[A-Za-z0-9 ._()-]+"; filename\*=UTF-8''([A-Za-z0-9%._~-]+)""", value)
    assert parts is not None
    assert unquote(parts[1]) == name


def test_an_object_that_is_stored_compressed_is_sent_as_such() -> None:
    assert sent(original(encoding="gzip"), document()).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in sent(original(encoding="evil\r\nx"), document()).headers
