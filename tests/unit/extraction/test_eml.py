"""E-mail: the text of a message, attachments as separate documents, and the limits of both."""

from __future__ import annotations

import io
from collections.abc import Callable
from email.message import EmailMessage

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import ParsedObject, read_object
from tests.documents import blocks_of, case, extract


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
    assert blocks_of(document) == [
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
    assert blocks_of(read(message).parts[0].document)[2:] == [("heading", "Days"), ("list", "- one")]


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


# Alternatives, invitations and signatures


def test_html_is_read_if_the_plain_text_only_refers_to_it() -> None:
    text = case("needs_html.eml").text
    assert "From March the per-diem is 44 euros a day." in text
    assert "does not show HTML" not in text


def test_html_is_read_if_the_plain_text_has_a_fraction_of_it() -> None:
    message = a_message("Open this message in your browser.")
    message.add_alternative(f"<html><p>Open this message. {'Leave is thirty days. ' * 20}</p></html>", subtype="html")
    assert "thirty days" in body_of(read(message))


def test_short_plain_text_is_read_if_the_html_says_the_same() -> None:
    message = a_message("Yes, 30 days.")
    message.add_alternative("<html><p>Yes, <b>30</b> days.</p></html>", subtype="html")
    assert body_of(read(message)) == "Yes, 30 days."


CALENDAR = """BEGIN:VCALENDAR
METHOD:REQUEST
BEGIN:VTIMEZONE
BEGIN:STANDARD
DTSTART:19701025T030000
END:STANDARD
END:VTIMEZONE
BEGIN:VEVENT
SUMMARY:Budget\\, second
  round
ORGANIZER;CN="Ola: Nordmann":mailto:ola@example.com
DTSTART;TZID=Europe/Oslo:20260301T100000
DTEND;TZID="Europe/Oslo":20260301T113000
LOCATION:Room 4
DESCRIPTION:Bring figures.\\nRead the plan.
BEGIN:VALARM
DESCRIPTION:Reminder
END:VALARM
END:VEVENT
END:VCALENDAR
"""


def an_invitation(calendar: str = CALENDAR) -> EmailMessage:
    message = a_message("You are invited.")
    message.add_alternative(calendar, subtype="calendar")
    return message


def test_an_invitation_is_read_with_its_time_place_and_description() -> None:
    assert body_of(read(an_invitation())) == (
        "You are invited.\n\nInvitation: Budget, second round\n"
        "When: 2026-03-01 10:00 Europe/Oslo to 2026-03-01 11:30 Europe/Oslo\nWhere: Room 4\n"
        "Organizer: Ola: Nordmann\nBring figures.\nRead the plan."
    )


@pytest.mark.parametrize("subtype", ["calendar", "ics"])
def test_an_invitation_that_is_attached_too_is_read_once(subtype: str) -> None:
    message = an_invitation()
    maintype = "text" if subtype == "calendar" else "application"
    data = CALENDAR.encode()
    message.add_attachment(data, maintype=maintype, subtype=subtype, filename="invite.ics")
    reading = read(message)
    assert body_of(reading).count("Budget") == 1
    assert reading.refused == ()


@pytest.mark.parametrize(
    ("calendar", "text"),
    [
        (
            "METHOD:CANCEL\nBEGIN:VEVENT\nSUMMARY:Lunch\nDTSTART:20260301\nEND:VEVENT",
            "Cancelled: Lunch\nWhen: 2026-03-01",
        ),
        (
            "BEGIN:VTODO\nSUMMARY:Report\nDUE:20260301T1000Z\nEND:VTODO",
            "Invitation: Report\nWhen: 2026-03-01 10:00 UTC",
        ),
        ("BEGIN:VEVENT\nDTSTART:soon\nEND:VEVENT", "When: soon"),
        ("BEGIN:VEVENT\nSUMMARY:never closed", ""),
        ("SUMMARY:outside\nEND:VEVENT\nnonsense\n:::", ""),
    ],
)
def test_other_and_damaged_calendars_are_read_as_far_as_they_go(calendar: str, text: str) -> None:
    assert body_of(read(an_invitation(calendar))) == f"You are invited.\n\n{text}".strip()


def test_a_calendar_of_many_events_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.data.calendar._MAX_EVENTS", 3)
    assert body_of(read(an_invitation("BEGIN:VEVENT\nSUMMARY:x\nEND:VEVENT\n" * 9))).count("Invitation") == 3


def test_a_signed_message_is_read_without_its_signature() -> None:
    head, _, _ = a_message().as_string().partition("Content-Type")
    signed = (
        f"{head}Content-Type: multipart/signed; protocol=application/pkcs7-signature; boundary=S\n\n--S\n"
        "Content-Type: text/plain\n\nSigned words.\n--S\nContent-Type: application/pkcs7-signature; name=smime.p7s\n\n"
        "MIIB\n--S--\n"
    )
    reading = read_object(signed.encode(), "a.eml")
    assert body_of(reading) == "Signed words."
    assert reading.refused == ()


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return bytes([tag, 0x84]) + len(content).to_bytes(4) + content


def indefinite(tag: int, *contents: bytes) -> bytes:
    return bytes([tag, 0x80]) + b"".join(contents) + b"\0\0"


SIGNED, DATA = bytes.fromhex("06092a864886f70d010702"), bytes.fromhex("06092a864886f70d010701")
ENVELOPED = bytes.fromhex("06092a864886f70d010703")


def opaque(*content: bytes, kind: bytes = SIGNED, wrap: Callable[..., bytes] = der) -> EmailMessage:
    """Return a message whose body is in a structure that also has the signature."""
    signed = wrap(0x30, b"\x02\x01\x01", der(0x31), wrap(0x30, DATA, *content), der(0x31))
    message = a_message()
    message.set_content(wrap(0x30, kind, wrap(0xA0, signed)), maintype="application", subtype="pkcs7-mime")
    return message


INNER = b"Content-Type: text/plain\r\n\r\nSigned words."


@pytest.mark.parametrize(
    "message",
    [
        opaque(der(0xA0, der(0x04, INNER))),
        opaque(indefinite(0xA0, indefinite(0x24, der(0x04, INNER[:9]), der(0x04, INNER[9:]))), wrap=indefinite),
    ],
    ids=["one piece", "in blocks_of"],
)
def test_the_content_of_an_opaque_signed_message_is_read(message: EmailMessage) -> None:
    assert body_of(read(message)) == "Signed words."


@pytest.mark.parametrize(
    "message",
    [
        opaque(der(0xA0, der(0x04, INNER)), kind=ENVELOPED),
        opaque(),
        opaque(b"\xa0\x88" + b"\xff" * 8),
        opaque(b"\xa0\x80" * 500),
        opaque(b"\xff\xff\xff"),
    ],
    ids=["encrypted", "only a signature", "false length", "nested deeply", "other tags"],
)
def test_a_sealed_message_that_cannot_be_opened_is_encrypted(message: EmailMessage) -> None:
    with pytest.raises(ExtractionError) as caught:
        read(message)
    assert caught.value.reason is QuarantineReason.ENCRYPTED
