"""LibreOffice and Tesseract, by stand-ins on the path: how parser processes run, limit and end them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docx
import pytest

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool

DOC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "WordDocument".encode("utf-16-le")
PNG = b"\x89PNG\r\n\x1a\n"
# A PDF page without text.
PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj
trailer<</Root 1 0 R>>
"""

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put a shell script on the path, before everything else."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


@pytest.fixture
def pool() -> Iterator[ParserPool]:
    pool = ParserPool(ParserLimits(seconds=30, ocr=True, ocr_languages="eng+deu"), 1)
    yield pool
    pool.close()


def refusal(pool: ParserPool, data: bytes, key: str) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        pool.read(data, key)
    return caught.value


def a_docx(text: str) -> bytes:
    document = docx.Document()
    document.add_paragraph(text)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


# LibreOffice


def test_an_old_word_document_is_converted_with_a_profile_of_its_own(
    program: Program, pool: ParserPool, tmp_path: Path
) -> None:
    (tmp_path / "converted.docx").write_bytes(a_docx("Leave is 30 days"))
    program(
        "soffice",
        f'echo "$@" > {tmp_path}/arguments; ls $HOME/profile/user > {tmp_path}/profile\n'
        f'while [ "$1" != --outdir ]; do shift; done; mkdir -p $2; cat {tmp_path}/converted.docx > $2/document.docx',
    )
    (part,) = pool.read(DOC, "oslo/people/leave.doc").parts
    assert (part.document.text, part.document.media_type) == ("Leave is 30 days", "application/msword")
    arguments = (tmp_path / "arguments").read_text()
    assert "--headless" in arguments
    assert "-env:UserInstallation=file:///" in arguments
    assert (tmp_path / "profile").read_text().split() == ["registrymodifications.xcu"]
    folder = arguments.split()[-1].removesuffix("/document")
    assert not Path(folder).exists()


def test_a_document_that_libreoffice_cannot_convert_is_malformed_and_the_process_goes_on(
    program: Program, pool: ParserPool
) -> None:
    program("soffice", "exit 1")
    assert refusal(pool, DOC, "a.doc").reason is QuarantineReason.MALFORMED
    assert pool.read(b"words", "a.txt").parts
    assert pool.started == 1


def test_without_libreoffice_an_old_word_document_is_refused_with_advice(
    program: Program, pool: ParserPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "which Word can save as docx" in refusal(pool, DOC, "a.doc").detail


def test_a_program_that_hangs_is_ended_with_everything_it_started(program: Program, tmp_path: Path) -> None:
    program("soffice", f"sleep 300 & echo $! > {tmp_path}/pid; wait")
    pool = ParserPool(ParserLimits(seconds=2), 1)
    try:
        assert refusal(pool, DOC, "a.doc").reason is QuarantineReason.TIMED_OUT
    finally:
        pool.close()
    started = Path("/proc", (tmp_path / "pid").read_text().strip())
    for _ in range(100):
        if not started.exists():
            break
        time.sleep(0.05)
    assert not started.exists()


def test_a_program_cannot_use_more_memory_than_its_parser(program: Program, pool: ParserPool, tmp_path: Path) -> None:
    program("soffice", f"ulimit -v > {tmp_path}/memory; exit 1")
    refusal(pool, DOC, "a.doc")
    assert int((tmp_path / "memory").read_text()) * 1024 == ParserLimits().memory


# Tesseract


def test_an_image_is_recognised_in_the_languages_of_the_setting_and_marked(program: Program, pool: ParserPool) -> None:
    program("tesseract", 'cat > /dev/null; echo "$@"; echo; echo Leave is 30 days')
    (part,) = pool.read(PNG, "oslo/people/scan.png").parts
    assert part.document.text == "[Text recognised by OCR]\n\nstdin stdout -l eng+deu\n\nLeave is 30 days"


def test_pages_of_a_pdf_without_text_are_recognised_from_a_rendered_image(program: Program, pool: ParserPool) -> None:
    program("tesseract", "head -c 15")
    (part,) = pool.read(PDF, "scan.pdf").parts
    assert part.document.text == "[Text recognised by OCR]\n\nP5 200 200 255"
    assert {block.page for block in part.document.blocks} == {1}


def test_pages_after_the_time_for_recognition_are_named(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from rag_assets.extraction.registry import read_object

    program("tesseract", "exit 1")
    monkeypatch.setenv("RAG_OCR", "true")
    monkeypatch.setattr("rag_assets.extraction.formats.images._SECONDS", -1.0)
    assert "from page 1 on were not recognised" in read_object(PDF, "scan.pdf").parts[0].document.text


@pytest.mark.parametrize("ocr", [True, False])
def test_without_tesseract_or_with_the_setting_off_images_and_scans_are_refused(program: Program, ocr: bool) -> None:
    program("other" if ocr else "tesseract", "echo words")
    pool = ParserPool(ParserLimits(ocr=ocr), 1)
    try:
        assert "a PNG image" in refusal(pool, PNG, "a.png").detail
        assert "run text recognition (OCR) on it first" in refusal(pool, PDF, "a.pdf").detail
    finally:
        pool.close()


def test_an_image_that_tesseract_cannot_read_is_malformed(program: Program, pool: ParserPool) -> None:
    program("tesseract", "exit 1")
    assert refusal(pool, PNG, "a.png").reason is QuarantineReason.MALFORMED
