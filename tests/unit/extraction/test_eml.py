"""E-mail: the text of a message, attachments as separate documents, and the limits of both."""

from __future__ import annotations

import io
from email.message import EmailMessage

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import ParsedObject, read_object
from tests.documents import extract


def pieces(document: ExtractedDocument) -> list[tuple[str, str]]:
    return [(str(block.kind), document.text[block.start : block.end]) for block in document.blocks]


def a_message(body: str = "Hello Bob.", subject: str = "Leave") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Alice <alice@example.com>"
    message["To"] = "Bob <bob@example.com>"
    message["Subject"] = subject
    message["Date"] = "Tue, 01 Apr 2025 09:30:00 +0200"
    message["Message-ID"] = "<1@example.com>"
    message.set_content(body)
    return message


def read(message: EmailMessage, key: str = "a.eml") -> ParsedObject:
    return read_object(message.as_bytes(), key)


def body_of(reading: ParsedObject) -> str:
    return reading.parts[0].document.text.partition("+0200\n\n")[2]


def test_a_message_is_read_as_its_subject_correspondents_and_body() -> None:
    reading = read(a_message("Hello Bob.\n\nTwo paragraphs.", subject="Urlaub für alle"))
    document = reading.parts[0].document
    assert [part.name for part in reading.parts] == [""]
    assert document.title == "Urlaub für alle"
    assert document.media_type == "message/rfc822"
    assert pieces(document) == [
        ("heading", "Urlaub für alle"),
        (
            "paragraph",
            "From: Alice <alice@example.com>\nTo: Bob <bob@example.com>\nDate: Tue, 01 Apr 2025 09:30:00 +0200",
        ),
        ("paragraph", "Hello Bob."),
        ("paragraph", "Two paragraphs."),
    ]


def test_a_message_is_detected_by_its_header_whatever_its_file_name() -> None:
    assert extract(a_message().as_bytes(), "notes/a.txt").media_type == "message/rfc822"


@pytest.mark.parametrize(
    "text", [b"Note: this\nFrom: here on\n\nwords", b"Title: x\nAuthor: y\n\nwords", b"From: me\n"]
)
def test_prose_with_colons_is_not_a_message(text: bytes) -> None:
    assert extract(text, "a.txt").media_type == "text/plain"


def test_among_alternatives_only_the_plain_text_is_read() -> None:
    message = a_message("plain words")
    message.add_alternative("<html><p>html words</p></html>", subtype="html")
    reading = read(message)
    assert body_of(reading) == "plain words"
    assert reading.refused == ()


def test_html_is_read_if_the_plain_text_alternative_is_empty() -> None:
    message = a_message(" \n")
    message.add_alternative("<html><h1>Days</h1><ul><li>one</li></ul></html>", subtype="html")
    assert pieces(read(message).parts[0].document)[2:] == [("heading", "Days"), ("list", "- one")]


@pytest.mark.parametrize(
    ("charset", "words"), [("iso-2022-jp", "育児休業の概要"), ("iso-8859-2", "Zażółć"), ("utf-8", "€")]
)
def test_a_body_is_decoded_with_the_declared_charset(charset: str, words: str) -> None:
    message = a_message()
    message.set_content(words, charset=charset)
    assert body_of(read(message)) == words


def test_attachments_are_separate_documents_with_formats_detected_from_content() -> None:
    book = openpyxl.Workbook()
    book.active.append(["Who", "Days"])
    sheet = io.BytesIO()
    book.save(sheet)
    message = a_message()
    message.add_attachment(sheet.getvalue(), maintype="application", subtype="octet-stream", filename="days.bin")
    message.add_attachment("# Policy\n\nwords", filename="policy.md")
    reading = read(message)
    assert [(part.name, part.document.title) for part in reading.parts] == [
        ("", "Leave"),
        ("days.bin", "Days"),
        ("policy.md", "Policy"),
    ]
    assert reading.refused == ()


def test_an_unreadable_attachment_is_refused_without_refusing_its_message() -> None:
    message = a_message()
    message.add_attachment(b"\x89PNG\r\n", maintype="image", subtype="png", filename="scan.png")
    message.add_attachment(b"", maintype="application", subtype="pdf", filename="empty.pdf")
    message.add_attachment("words", filename="note.txt")
    reading = read(message)
    assert [part.name for part in reading.parts] == ["", "note.txt"]
    assert [(part.name, part.reason) for part in reading.refused] == [
        ("scan.png", QuarantineReason.UNSUPPORTED_TYPE),
        ("empty.pdf", QuarantineReason.EMPTY),
    ]


def test_inline_images_and_signatures_are_not_attachments() -> None:
    message = a_message("plain")
    message.add_alternative("<html><p>x</p><img src='cid:logo'></html>", subtype="html")
    message.get_payload()[1].add_related(b"\x89PNG\r\n", "image", "png", cid="<logo>")
    message.make_mixed()
    signature = EmailMessage()
    signature["Content-Type"] = "application/pgp-signature"
    signature.set_payload("-----")
    message.attach(signature)
    reading = read(message)
    assert len(reading.parts) == 1
    assert reading.refused == ()


def test_attachment_names_are_unique_and_contain_no_path() -> None:
    message = a_message()
    for name in ("note.txt", "note.txt", "../x/note.txt", ""):
        message.add_attachment(f"words of {name}", filename=name)
    del message.get_payload()[-1]["Content-Disposition"]
    message.get_payload()[-1]["Content-Disposition"] = "attachment"
    names = [part.name for part in read(message).parts]
    assert names == ["", "note.txt", "note (2).txt", ".._x_note.txt", "attachment.txt"]


def test_a_forwarded_message_and_its_attachment_are_named_by_their_path() -> None:
    inner = a_message("inner words", subject="Older")
    inner.add_attachment("attached words", filename="note.txt")
    message = a_message()
    message.add_attachment(inner)
    reading = read(message)
    assert [part.name for part in reading.parts] == ["", "Older.eml", "Older.eml/note.txt"]
    assert "inner words" in reading.parts[1].document.text


def test_messages_nested_too_deeply_are_refused_from_the_limit_on() -> None:
    message = a_message("innermost", subject="0")
    for number in range(1, 8):
        outer = a_message(f"words {number}", subject=str(number))
        outer.add_attachment(message)
        message = outer
    reading = read(message)
    assert len(reading.parts) == 6
    assert [part.reason for part in reading.refused] == [QuarantineReason.TOO_LARGE]


@pytest.mark.parametrize(("limit", "value"), [("MAX_ATTACHMENTS", 1), ("MAX_ATTACHED_BYTES", 6)])
def test_attachments_over_the_limits_are_refused_individually(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(f"rag_assets.extraction.registry.{limit}", value)
    message = a_message()
    for name in ("a.txt", "b.txt"):
        message.add_attachment("words", filename=name)
    reading = read(message)
    assert [part.name for part in reading.parts] == ["", "a.txt"]
    assert [(part.name, part.reason) for part in reading.refused] == [("b.txt", QuarantineReason.TOO_LARGE)]


def test_an_encrypted_message_is_refused_as_encrypted() -> None:
    message = a_message()
    message.set_content(b"sealed", maintype="application", subtype="pkcs7-mime")
    with pytest.raises(ExtractionError) as caught:
        read(message)
    assert caught.value.reason is QuarantineReason.ENCRYPTED


def test_ten_thousand_nested_parts_are_too_large() -> None:
    opening = b"From: a@b\nMessage-ID: <1>\n"
    nested = b"".join(
        b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (number, number) for number in range(10_000)
    )
    with pytest.raises(ExtractionError) as caught:
        read_object(opening + nested + b"\nwords", "a.eml")
    assert caught.value.reason is QuarantineReason.TOO_LARGE


def test_an_unparsable_header_does_not_prevent_reading_the_message() -> None:
    data = b"From: " + b"(" * 5000 + b"\nMessage-ID: <1>\nSubject: s\n\nwords"
    assert "words" in extract(data, "a.eml").text


@given(
    st.lists(
        st.sampled_from(
            [
                b"From: a@b\n",
                b"Subject: =?utf-8?q?=E6?=\n",
                b"MIME-Version: 1.0\n",
                b"Content-Type: multipart/alternative; boundary=b\n",
                b"Content-Type: multipart/mixed; boundary=b\n",
                b"Content-Type: message/rfc822\n",
                b"Content-Type: text/html; charset=none\n",
                b"Content-Transfer-Encoding: base64\n",
                b'Content-Disposition: attachment; filename="x"\n',
                b"--b\n",
                b"--b--\n",
                b"\n",
                b"words\n",
                b"<p>words\n",
            ]
        )
        | st.binary(max_size=12),
        max_size=25,
    ).map(b"".join)
)
def test_any_message_is_read_or_raises_an_extraction_error(data: bytes) -> None:
    try:
        reading = read_object(data, "a.eml")
    except ExtractionError:
        return
    names = [part.name for part in (*reading.parts, *reading.refused)]
    assert names[0] == ""
    assert len(set(names)) == len(names)
