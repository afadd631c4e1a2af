"""The zip container of Word, PowerPoint and Excel files: its kind, and whether it is safe to open.

A zip may declare any size for its entries, so the container is inflated and measured before a library opens it.
"""

import io
import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from rag_assets.extraction.errors import ExtractionError, QuarantineReason

R: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
ZIP_SIGNATURE: Final = b"PK\x03\x04"

MAX_INFLATED_BYTES: Final = 256 * 1024 * 1024
MAX_MARKUP_BYTES: Final = 96 * 1024 * 1024
"""Limit of one XML entry, because its tree takes about ten times as much memory."""
MAX_ENTRIES: Final = 10_000
MAX_RATIO: Final = 200
# Smaller files may exceed the ratio: a repetitive table of a few megabytes is harmless.
_RATIO_APPLIES_FROM: Final = 32 * 1024 * 1024

_STEP: Final = 256 * 1024
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_CONTENT_TYPES: Final = "[Content_Types].xml"
_ROOT_RELATIONS: Final = "_rels/.rels"

# Office never declares a document type; an attacker does, to expand entities.
_DOCTYPES: Final = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
_LONGEST_DOCTYPE: Final = max(map(len, _DOCTYPES))

_STRICT: Final = b"http://purl.oclc.org/ooxml/"
_STRICT_NAME = re.compile(rb"http://purl\.oclc\.org/ooxml/([A-Za-z]{1,40})/([A-Za-z]{1,40})(/[A-Za-z]{1,40})?")
# Names that differ between the dialects in more than their prefix.
_HYPHENATED: Final = {b"extendedProperties": b"extended-properties", b"customProperties": b"custom-properties"}
# Files with macros, templates and slide shows have ordinary content, but the libraries reject their content types.
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
    """Return the entry names of a zip; empty if its directory is unreadable."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return []


def holds_part(data: bytes, start: str) -> bool:
    """Return whether the content is a zip with an XML entry whose name starts like that (`word/document`)."""
    return data.startswith(ZIP_SIGNATURE) and any(
        name.startswith(start) and name.endswith(".xml") for name in zip_names(data)
    )


def walk(root: Any, inside: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the descendants of an XML element in order; `inside` returns the element to descend into, or None.

    A loop, because documents may nest deeper than Python can recurse.
    """
    pending = [root.iterchildren()]
    while pending:
        element = next(pending[-1], None)
        if element is None:
            pending.pop()
            continue
        yield element
        entered = inside(element)
        if entered is not None:
            pending.append(entered.iterchildren())


def part_root(part: Any) -> Any:
    """Return the root element of a part; None if it is not XML."""
    root = getattr(part, "_element", None)
    return parse_xml(part.blob) if root is None else root


def related_part(part: Any, identifier: str | None) -> Any:
    """Return the part that a relationship refers to; None if it is missing or outside the file."""
    if identifier is None or identifier not in part.rels or part.rels[identifier].is_external:
        return None
    return part.rels[identifier].target_part


def related_root(part: Any, identifier: str | None) -> Any:
    """Return the root element of the part that a relationship refers to; None if there is none."""
    related = related_part(part, identifier)
    return None if related is None else part_root(related)


class Package:
    """The parts of a container by their paths, for what a library does not read. The container must be safe."""

    def __init__(self, data: bytes) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self._names = set(self._archive.namelist())

    def content(self, path: str) -> bytes:
        """Return the bytes of a part; empty if it is missing."""
        return self._archive.read(path) if path in self._names else b""

    def root(self, path: str) -> Any:
        """Return the root element of a part; None if it is missing or not well-formed."""
        return parse_xml(self.content(path))

    def relations(self, path: str) -> dict[str, tuple[str, str]]:
        """Return the kind and the path of each part that a part refers to, by the id of the relationship."""
        folder, _, name = path.rpartition("/")
        root = self.root(f"{folder}/_rels/{name}.rels")
        found: dict[str, tuple[str, str]] = {}
        for relation in () if root is None else root.iter("{*}Relationship"):
            if relation.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target", ""))).lstrip("/")
                found[relation.get("Id", "")] = (relation.get("Type", "").rpartition("/")[2], target)
        return found


def parse_xml(content: bytes) -> Any:
    """Return the root element; None if the content is not well-formed. Entities are not expanded."""
    import lxml.etree  # pyright: ignore[reportMissingTypeStubs]

    etree = cast("Any", lxml.etree)
    try:
        return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError:
        return None


def safe_package(data: bytes) -> bytes:
    """Check the container against the limits, and return its bytes in the dialect that the libraries read.

    Files in the Strict dialect, files with macros and templates are rewritten. Raises ExtractionError: too_large if it
    inflates beyond the limits, encrypted, malformed.
    """
    measure(data)
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


def inflated_limit(data: bytes) -> int:
    """Return the number of bytes that all entries of a container together may inflate to."""
    return min(MAX_INFLATED_BYTES, max(_RATIO_APPLIES_FROM, MAX_RATIO * len(data)))


def measure(data: bytes) -> None:
    """Inflate every entry to check the limits, without keeping it; raise ExtractionError beyond them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        detail = f"{len(entries)} entries in the container; the limit is {MAX_ENTRIES}"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    limit = inflated_limit(data)
    total = 0
    for entry in entries:
        if entry.flag_bits & 1:
            detail = "an entry of the container is encrypted; save the file without a password"
            raise ExtractionError(QuarantineReason.ENCRYPTED, detail)
        markup = _is_markup(entry.filename)
        size = 0
        before = b""
        for piece in inflate(data, entry):
            size += len(piece)
            total += len(piece)
            if total > limit:
                detail = f"{len(data)} bytes inflate to more than {limit // 2**20} MiB; save the document again"
                raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
            if not markup:
                continue
            if size > MAX_MARKUP_BYTES:
                detail = f"one part of the file has more than {MAX_MARKUP_BYTES // 2**20} MiB of XML; split the file"
                raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
            seam = before + piece[:_LONGEST_DOCTYPE]
            if any(doctype in piece or doctype in seam for doctype in _DOCTYPES):
                detail = "its XML declares a document type, which Office never writes; save the document again"
                raise ExtractionError(QuarantineReason.MALFORMED, detail)
            before = piece[-_LONGEST_DOCTYPE:]
        # Libraries allocate the declared size but read past it, so it must be true.
        if size != entry.file_size:
            detail = f"an entry declares {entry.file_size} bytes but has {size}; save the document again"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)


def inflate(data: bytes, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of an entry in pieces of at most `_STEP` bytes (a stored entry in one)."""
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(data, entry.header_offset)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    stop = start + entry.compress_size
    if signature != ZIP_SIGNATURE or stop > len(data):
        raise ExtractionError(QuarantineReason.MALFORMED, "the container is truncated or damaged; upload it again")
    if entry.compress_type == zipfile.ZIP_STORED:
        yield data[start:stop]
        return
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        detail = "the container uses a compression that Office does not; save the document again"
        raise ExtractionError(QuarantineReason.MALFORMED, detail)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for position in range(start, stop, _STEP):
        waiting = data[position : min(stop, position + _STEP)]
        while waiting and not inflater.eof:
            yield inflater.decompress(waiting, _STEP)
            waiting = inflater.unconsumed_tail
    yield inflater.flush()
