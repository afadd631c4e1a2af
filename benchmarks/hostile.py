"""Read documents built to exhaust their parser in the pipeline's parser processes: outcome, time, memory.

RAG_PARSE_MEMORY limits the address space of a parser process. The table shows its peak resident memory, sampled from
outside, and the memory growth of the supervising process.
"""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Callable

import psutil

from benchmarks.reporting import arguments, show
from rag_assets.extraction.errors import ExtractionError
from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool


def inflating_zip(inflated: int) -> bytes:
    """Return a Word document whose body is a few megabytes of zeros that inflate to `inflated` bytes."""
    target = io.BytesIO()
    piece = bytes(2**20)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as entry:
            for _ in range(inflated // len(piece)):
                entry.write(piece)
    return target.getvalue()


def long_pdf(pages: int) -> bytes:
    """Return a PDF with this many pages and a few lines of text on each."""
    objects: list[bytes] = [b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    numbers: list[int] = []
    for page in range(pages):
        lines = "".join(
            f"(Page {page} says in line {line} that berth {page * line} is free.) Tj T* " for line in range(30)
        )
        content = f"BT /F1 10 Tf 12 TL 50 750 Td {lines}ET".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 1 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 2 0 R >> >> >>" % len(objects)
        )
        numbers.append(len(objects))
    objects[0] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (pages, b" ".join(b"%d 0 R" % n for n in numbers))
    objects.append(b"<< /Type /Catalog /Pages 1 0 R >>")
    target = io.BytesIO()
    target.write(b"%PDF-1.4\n")
    offsets: list[int] = []
    for number, body in enumerate(objects, start=1):
        offsets.append(target.tell())
        target.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = target.tell()
    target.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    target.write(b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    target.write(
        b"trailer << /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(objects), start)
    )
    return target.getvalue()


def entity_bomb() -> bytes:
    """Return a Word document whose nested entities expand to a billion words."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    body = f'<!DOCTYPE x [<!ENTITY l0 "ha">{levels}]><w:document xmlns:w="w">&l9;</w:document>'
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", body)
    return target.getvalue()


CASES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "zip that inflates to 5 GB": ("bomb.docx", lambda scale: inflating_zip(5 * 2**30 // scale)),
    "entities that expand to a billion words": ("bomb.docx", lambda _: entity_bomb()),
    "PDF of 10,000 pages": ("long.pdf", lambda scale: long_pdf(10_000 // scale)),
    "text of 200 MB": ("long.txt", lambda scale: b"word after word " * (12_500_000 // scale)),
    "HTML nested 1,000,000 deep": ("deep.html", lambda scale: b"<html>" + b"<div>" * (1_000_000 // scale) + b"x"),
    "HTML nested 10,000 deep": ("deep.html", lambda scale: b"<html>" + b"<div>" * (10_000 // scale) + b"x"),
    "CSV of one 50 MB line": ("wide.csv", lambda scale: b"a,b,c,d\n" + b"cell," * (10_000_000 // scale)),
    "RTF of 20,000,000 braces": ("deep.rtf", lambda scale: b"{\\rtf1 " + b"{" * (20_000_000 // scale)),
    "message with 10,000 nested parts": (
        "nested.eml",
        lambda scale: (
            b"From: a@b.example\nMIME-Version: 1.0\n"
            + b"".join(
                b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(10_000 // scale)
            )
        ),
    ),
}


class Memory:
    """Samples the resident memory of this process and of its children while the block runs."""

    def __enter__(self) -> Memory:
        self._own = psutil.Process()
        self._before = self._own.memory_info().rss
        self.children = 0
        self.own_growth = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            sizes: list[int] = []
            for child in self._own.children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.children = max(self.children, sum(sizes))
            self.own_growth = max(self.own_growth, self._own.memory_info().rss - self._before)


def main() -> None:
    """Read each hostile document, and then a harmless one."""
    options = arguments(__doc__ or "").parse_args()
    limits = ParserLimits()
    pool = ParserPool(limits, 1)
    rows: list[dict[str, object]] = []
    for name, (key, make) in CASES.items():
        data = make(50 if options.quick else 1)
        with Memory() as memory:
            started = time.perf_counter()
            try:
                reading = pool.read(data, f"region/department/{key}")
                outcome = f"text, {len(reading.parts[0].document.text):,} characters"
            except ExtractionError as error:
                outcome = f"{error.reason}: {error.detail}"
            seconds = time.perf_counter() - started
        pool.read(b"An honest page.", "region/department/page.txt")
        rows.append(
            {
                "document": name,
                "MiB": round(len(data) / 2**20, 1),
                "outcome": outcome[:70],
                "s": round(seconds, 1),
                "parser MiB": round(memory.children / 2**20),
                "supervisor growth MiB": round(memory.own_growth / 2**20),
            }
        )
    pool.close()
    show(
        f"hostile documents; limits of a parser: {limits.memory // 2**20} MiB and {limits.seconds} s",
        rows,
        options.json,
        processes=pool.started,
    )


if __name__ == "__main__":
    main()
