"""Zip archives and mailboxes: their files and messages are parts, within limits."""

from __future__ import annotations

from email.message import EmailMessage

import pytest

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.extraction.registry import ParsedObject, read_object
from tests.container_files import a_zip, an_opendocument
from tests.documents import refusal


def parts(parsed: ParsedObject) -> dict[str, str]:
    return {part.name: part.document.text for part in parsed.parts}


def refused(parsed: ParsedObject) -> dict[str, QuarantineReason]:
    return {part.name: part.reason for part in parsed.refused}


def test_the_files_of_an_archive_are_parts_and_the_archive_lists_them() -> None:
    data = a_zip(
        {
            "notes/leave.md": "# Leave",
            "leave.odt": an_opendocument("text", "<text:p>30 days</text:p>"),
            "__MACOSX/x": "x",
            "a.bin": bytes(9),
        }
    )
    parsed = read_object(data, "oslo/people/all.zip")
    assert parts(parsed) == {
        "": "- notes/leave.md\n- leave.odt\n- a.bin",
        "notes_leave.md": "# Leave",
        "leave.odt": "30 days",
    }
    assert refused(parsed) == {"a.bin": QuarantineReason.UNSUPPORTED_TYPE}


def test_names_that_differ_only_in_their_slashes_stay_distinct() -> None:
    assert list(parts(read_object(a_zip({"a/b.txt": "one", "a_b.txt": "two"}), "a.zip"))) == [
        "",
        "a_b.txt",
        "a_b (2).txt",
    ]


def test_names_in_utf8_without_the_flag_are_decoded() -> None:
    data = a_zip({"größe.txt": "words"}).replace("größe".encode("cp437"), b"?")
    flagged = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = flagged.find(signature) + offset
        flagged[at : at + 2] = b"\0\0"
    assert "größe.txt" in parts(read_object(bytes(flagged), "a.zip"))


def test_encrypted_damaged_and_unusually_compressed_files_are_named_and_the_others_read() -> None:
    names = ("good.txt", "secret.txt", "broken.txt", "odd.txt")
    data = bytearray(a_zip(dict.fromkeys(names, "some words")))
    for name, offset, value in ((b"secret.txt", -38, 1), (b"odd.txt", -36, 12)):
        at = data.rfind(name) + offset
        data[at : at + 2] = value.to_bytes(2, "little")
    at = data.find(b"broken.txt") + len(b"broken.txt")
    data[at + 2] ^= 0xFF
    parsed = read_object(bytes(data), "a.zip")
    assert parts(parsed)["good.txt"] == "some words"
    assert refused(parsed) == {
        "secret.txt": QuarantineReason.ENCRYPTED,
        "broken.txt": QuarantineReason.MALFORMED,
        "odd.txt": QuarantineReason.UNSUPPORTED_TYPE,
    }


def test_nested_archives_are_read_to_a_depth() -> None:
    data = a_zip({"a.txt": "deepest"})
    for _ in range(7):
        data = a_zip({"in.zip": data})
    parsed = read_object(data, "a.zip")
    assert len(parsed.parts) == 6
    assert refused(parsed) == {"/".join(["in.zip"] * 6): QuarantineReason.TOO_LARGE}


def test_an_archive_of_too_many_files_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.containers.archive.MAX_FILES", 2)
    assert refusal(a_zip({f"{n}.txt": "x" for n in range(3)}), "a.zip").reason is QuarantineReason.TOO_LARGE


def test_an_archive_that_inflates_beyond_the_limit_is_too_large_whatever_it_declares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.ooxml.MAX_INFLATED_BYTES", 2**20)
    data = a_zip({"a.txt": "words", "b.txt": bytes(2**21)})
    lying = data.replace((2**21).to_bytes(4, "little"), (16).to_bytes(4, "little"))
    for bomb in (data, lying):
        assert refusal(bomb, "a.zip").reason is QuarantineReason.TOO_LARGE


def test_many_small_archives_that_inflate_together_beyond_the_limit_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.registry.MAX_ATTACHED_BYTES", 2**20)
    bomb = a_zip({"a.txt": b"word " * 2**17})
    parsed = read_object(a_zip({f"{n}.zip": bomb for n in range(10)}), "a.zip")
    assert sum(len(part.document.text) for part in parsed.parts) < 2**21
    assert QuarantineReason.TOO_LARGE in refused(parsed).values()


def a_message(subject: str, body: str = "words", *, attached: bytes = b"") -> bytes:
    message = EmailMessage()
    message["From"], message["Subject"], message["Message-ID"] = "kim@example.org", subject, "<1@example.org>"
    message.set_content(body)
    if attached:
        message.add_attachment(attached, maintype="application", subtype="mbox", filename="in.mbox")
    return message.as_bytes()


def an_mbox(*messages: bytes) -> bytes:
    return b"".join(b"From kim@example.org Thu Jan  1 00:00:00 2026\n" + message + b"\n\n" for message in messages)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_the_messages_of_a_mailbox_are_parts_and_the_mailbox_lists_their_subjects(line_end: bytes) -> None:
    data = an_mbox(a_message("Größe", "Hi\n\nFrom here on: text\n\n>From quoted"), a_message("Second"))
    parsed = read_object(data.replace(b"\n", line_end), "archive/inbox.mbox")
    texts = parts(parsed)
    assert texts[""] == "- Größe\n- Second"
    assert list(texts) == ["", "message 1.eml", "message 2.eml"]
    assert "From here on: text" in texts["message 1.eml"]
    assert texts["message 1.eml"].endswith("\n\nFrom quoted")


def test_a_text_that_begins_with_from_is_no_mailbox() -> None:
    assert read_object(b"From here on\nwords", "a.txt").parts[0].document.media_type == "text/plain"


def test_nested_mailboxes_do_not_multiply() -> None:
    data = an_mbox(a_message("Deepest"))
    for _ in range(6):
        data = an_mbox(*[a_message("Outer", attached=data)] * 3)
    parsed = read_object(data, "a.mbox")
    assert len(parsed.parts) < 3**4
    assert set(refused(parsed).values()) == {QuarantineReason.TOO_LARGE}


def test_a_mailbox_of_too_many_messages_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.containers.mbox.MAX_MESSAGES", 2)
    assert refusal(an_mbox(*[a_message("x")] * 3), "a.mbox").reason is QuarantineReason.TOO_LARGE
