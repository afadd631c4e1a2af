"""The zip container that Word, PowerPoint and Excel files share: what kind it is, and whether it is safe to open.

A zip may claim any size for its entries, so the container is inflated and counted here before any library sees it.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

from rag_assets.extraction.errors import ExtractionError, QuarantineReason

ZIP_SIGNATURE: Final = b"PK\x03\x04"

MAX_INFLATED_BYTES: Final = 256 * 1024 * 1024
MAX_MARKUP_BYTES: Final = 96 * 1024 * 1024
"""Of one XML entry: the libraries make a tree of it, which takes some ten times its size."""
MAX_ENTRIES: Final = 10_000
MAX_RATIO: Final = 200
# Small files reach high ratios honestly: a repetitive table of a few megabytes does no harm.
_RATIO_APPLIES_FROM: Final = 32 * 1024 * 1024

_STEP: Final = 256 * 1024
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_CONTENT_TYPES: Final = "[Content_Types].xml"
_ROOT_RELATIONS: Final = "_rels/.rels"

# Office never declares a document type; whoever does wants entities expanded.
_DOCTYPES: Final = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
_LONGEST_DOCTYPE: Final = max(map(len, _DOCTYPES))

_STRICT: Final = b"http://purl.oclc.org/ooxml/"
_STRICT_NAME = re.compile(rb"http://purl\.oclc\.org/ooxml/([A-Za-z]{1,40})/([A-Za-z]{1,40})(/[A-Za-z]{1,40})?")
# The names that differ between the two in more than their beginning.
_HYPHENATED: Final = {b"extendedProperties": b"extended-properties", b"customProperties": b"custom-properties"}
# Macros, templates and slide shows hold what an ordinary file holds; the libraries look at the name only.
_ORDINARY_TYPES: Final = (
    (
        re.compile(rb"application/vnd\.(?:ms-word\.|openxmlformats-officedocument\.wordprocessingml\.)"
                   rb"(?:document|template)\.(?:macroEnabled(?:Template)?\.)?main\+xml", re.IGNORECASE),
        b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
    ),
    (
        re.compile(rb"application/vnd\.(?:ms-powerpoint\.|openxmlformats-officedocument\.presentationml\.)"
                   rb"(?:presentation|template|slideshow)\.(?:macroEnabled\.)?main\+xml", re.IGNORECASE),
        b"application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml",
    ),
)  # fmt: skip


def zip_names(data: bytes) -> list[str]:
    """The entry names of a zip; none where its directory cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return []


def holds_part(data: bytes, start: str, end: str = ".xml") -> bool:
    """Whether the content is a zip with an entry of that beginning and end, like `word/document` and `.xml`."""
    return data.startswith(ZIP_SIGNATURE) and any(
        name.startswith(start) and name.endswith(end) for name in zip_names(data)
    )


def open_package(data: bytes) -> bytes:
    """The container, measured and found harmless, in the dialect that the libraries read.

    Files in the Strict dialect, with macros, and templates come back rewritten; every other comes back as it is.
    Raises ExtractionError: too_large where it inflates beyond the limits, encrypted, malformed.
    """
    _measure(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = set(archive.namelist())
        strict = _ROOT_RELATIONS in names and _STRICT in archive.read(_ROOT_RELATIONS)
        types = archive.read(_CONTENT_TYPES) if _CONTENT_TYPES in names else b""
        ordinary = types
        for pattern, ordinary_type in _ORDINARY_TYPES:
            ordinary = pattern.sub(ordinary_type, ordinary)
        if not strict and ordinary == types:
            return data
        rewritten = io.BytesIO()
        with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
            for name in names:
                content = ordinary if name == _CONTENT_TYPES else archive.read(name)
                if strict and _is_markup(name):
                    content = _STRICT_NAME.sub(_transitional, content)
                target.writestr(name, content)
    return rewritten.getvalue()


def _transitional(name: re.Match[bytes]) -> bytes:
    family, last, more = name[1], name[2], name[3] or b""
    last = _HYPHENATED.get(last, last)
    more = b"/" + _HYPHENATED.get(more[1:], more[1:]) if more else b""
    return b"http://schemas.openxmlformats.org/" + family + b"/2006/" + last + more


def _is_markup(name: str) -> bool:
    return name.endswith((".xml", ".rels")) and not name.startswith("customXml/")


def _measure(data: bytes) -> None:
    """Inflate every entry without keeping it, and count."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        detail = f"{len(entries)} entries in the container; the limit is {MAX_ENTRIES}"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    limit = min(MAX_INFLATED_BYTES, max(_RATIO_APPLIES_FROM, MAX_RATIO * len(data)))
    total = 0
    for entry in entries:
        if entry.flag_bits & 1:
            raise ExtractionError(QuarantineReason.ENCRYPTED, "an entry of the container is encrypted; save it without")
        markup = _is_markup(entry.filename)
        size = 0
        before = b""
        for piece in _inflate(data, entry):
            size += len(piece)
            total += len(piece)
            if total > limit:
                detail = f"{len(data)} bytes inflate to more than {limit // 2**20} MiB; save the document anew"
                raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
            if not markup:
                continue
            if size > MAX_MARKUP_BYTES:
                detail = f"one part of the file holds more than {MAX_MARKUP_BYTES // 2**20} MiB of XML; split the file"
                raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
            seam = before + piece[:_LONGEST_DOCTYPE]
            if any(doctype in piece or doctype in seam for doctype in _DOCTYPES):
                detail = "its XML declares a document type, which no Office program writes; save the document anew"
                raise ExtractionError(QuarantineReason.MALFORMED, detail)
            before = piece[-_LONGEST_DOCTYPE:]
        # Libraries allocate by the declared size and read past it: only an honest container goes on.
        if size != entry.file_size:
            detail = f"an entry declares {entry.file_size} bytes and holds {size}; save the document anew"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)


def _inflate(data: bytes, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """What an entry inflates to, in pieces of at most `_STEP` bytes (a stored entry in one)."""
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(data, entry.header_offset)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    stop = start + entry.compress_size
    if signature != ZIP_SIGNATURE or stop > len(data):
        raise ExtractionError(QuarantineReason.MALFORMED, "the container is cut off or damaged; upload it again")
    if entry.compress_type == zipfile.ZIP_STORED:
        yield data[start:stop]
        return
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        raise ExtractionError(QuarantineReason.MALFORMED, "the container uses a compression that Office does not")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for position in range(start, stop, _STEP):
        waiting = data[position : min(stop, position + _STEP)]
        while waiting and not inflater.eof:
            yield inflater.decompress(waiting, _STEP)
            waiting = inflater.unconsumed_tail
    yield inflater.flush()
