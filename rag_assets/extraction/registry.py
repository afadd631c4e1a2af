"""The supported formats, and how a source object's format is detected.

To add a format, write `extract_NAME(data: bytes) -> ExtractedDocument` in `formats/NAME.py` and add a `Format` to
`FORMATS`: with `recognise` if the content identifies it (and its suffix in `_RECOGNISED_BY_CONTENT`), else with
`suffixes`. Increase `EXTRACTOR_VERSION`, so that every document is read again. `DocumentBuilder` assembles text and
blocks; `ooxml.safe_package` checks Office containers.

The function may raise any exception, which `read_object` turns into an ExtractionError. It returns an empty title if
the content has none, the `attachments` of a format that contains other files, and as `omissions` what it cannot read.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from rag_assets.extraction.decoding import looks_binary
from rag_assets.extraction.document import Attachment, Block, ExtractedDocument, has_words, one_line, without_excess
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.format import Format, installed_formats
from rag_assets.extraction.formats.containers.archive import (
    ZIP_MEDIA_TYPE,
    container_kind,
    extract_archive,
    looks_like_archive,
)
from rag_assets.extraction.formats.containers.epub import EPUB_MEDIA_TYPE, extract_epub, looks_like_epub
from rag_assets.extraction.formats.containers.mbox import MBOX_MEDIA_TYPE, extract_mbox, looks_like_mbox
from rag_assets.extraction.formats.containers.msg import MSG_MEDIA_TYPE, extract_msg, looks_like_msg
from rag_assets.extraction.formats.containers.opendocument import (
    ODP_MEDIA_TYPE,
    ODS_MEDIA_TYPE,
    ODT_MEDIA_TYPE,
    extract_odp,
    extract_ods,
    extract_odt,
    looks_like_opendocument,
)
from rag_assets.extraction.formats.csv import CSV_MEDIA_TYPE, extract_csv
from rag_assets.extraction.formats.data.calendar import CALENDAR_MEDIA_TYPE, extract_calendar, looks_like_calendar
from rag_assets.extraction.formats.data.json import (
    JSON_LINES_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    extract_json,
    extract_json_lines,
)
from rag_assets.extraction.formats.data.notebook import NOTEBOOK_MEDIA_TYPE, extract_notebook
from rag_assets.extraction.formats.data.subtitles import (
    SRT_MEDIA_TYPE,
    VTT_MEDIA_TYPE,
    extract_srt,
    extract_vtt,
    looks_like_vtt,
)
from rag_assets.extraction.formats.data.xml import XML_MEDIA_TYPE, extract_xml
from rag_assets.extraction.formats.data.yaml import YAML_MEDIA_TYPE, extract_yaml
from rag_assets.extraction.formats.docx import DOCX_MEDIA_TYPE, extract_docx
from rag_assets.extraction.formats.eml import EML_MEDIA_TYPE, extract_eml, looks_like_eml
from rag_assets.extraction.formats.html import HTML_MEDIA_TYPE, extract_html, looks_like_html
from rag_assets.extraction.formats.images import (
    IMAGE_MEDIA_TYPE,
    can_read_image,
    extract_image,
    with_recognised_pages,
)
from rag_assets.extraction.formats.legacy.libreoffice import (
    DOC_MEDIA_TYPE,
    PPT_MEDIA_TYPE,
    extract_doc,
    extract_ppt,
    looks_like_doc,
    looks_like_ppt,
)
from rag_assets.extraction.formats.legacy.ole import OLE_SIGNATURE, POWERPOINT, VISIO, WORD, refuse_encrypted, stream_of
from rag_assets.extraction.formats.legacy.spreadsheets import (
    XLS_MEDIA_TYPE,
    XLSB_MEDIA_TYPE,
    extract_xls,
    extract_xlsb,
    looks_like_xls,
    looks_like_xlsb,
)
from rag_assets.extraction.formats.markdown import MARKDOWN_MEDIA_TYPE, extract_markdown, heading_words
from rag_assets.extraction.formats.markup.asciidoc import ASCIIDOC_MEDIA_TYPE, extract_asciidoc
from rag_assets.extraction.formats.markup.mdx import MDX_MEDIA_TYPE, extract_mdx
from rag_assets.extraction.formats.markup.org import ORG_MEDIA_TYPE, extract_org
from rag_assets.extraction.formats.markup.restructured_text import RST_MEDIA_TYPE, extract_rst
from rag_assets.extraction.formats.markup.tex import TEX_MEDIA_TYPE, extract_tex
from rag_assets.extraction.formats.ooxml import ZIP_SIGNATURE, holds_part, zip_names
from rag_assets.extraction.formats.pdf import PDF_MEDIA_TYPE, extract_pdf, looks_like_pdf
from rag_assets.extraction.formats.plain import TEXT_MEDIA_TYPE, extract_text
from rag_assets.extraction.formats.pptx import PPTX_MEDIA_TYPE, extract_pptx
from rag_assets.extraction.formats.rtf import RTF_MEDIA_TYPE, extract_rtf, looks_like_rtf
from rag_assets.extraction.formats.xlsx import XLSX_MEDIA_TYPE, extract_xlsx

# Increase it when existing objects would be read differently, quarantined ones that a new format can read included.
EXTRACTOR_VERSION: Final = "4"

# For all attachments of one object together, at any depth, including the files of archives.
MAX_ATTACHMENTS: Final = 2_000
MAX_ATTACHED_BYTES: Final = 256 * 1024 * 1024
MAX_ATTACHMENT_DEPTH: Final = 5


# The content is tested in this order, then the name.
FORMATS: Final = (
    Format("PDF", PDF_MEDIA_TYPE, extract_pdf, looks_like_pdf),
    Format("Word (docx)", DOCX_MEDIA_TYPE, extract_docx, partial(holds_part, start="word/document")),
    Format("PowerPoint (pptx)", PPTX_MEDIA_TYPE, extract_pptx, partial(holds_part, start="ppt/presentation")),
    Format("Excel (xlsx)", XLSX_MEDIA_TYPE, extract_xlsx, partial(holds_part, start="xl/workbook")),
    Format("old Excel (xls)", XLS_MEDIA_TYPE, extract_xls, looks_like_xls),
    Format("binary Excel (xlsb)", XLSB_MEDIA_TYPE, extract_xlsb, looks_like_xlsb),
    Format("old Word (doc, with LibreOffice)", DOC_MEDIA_TYPE, extract_doc, looks_like_doc),
    Format("old PowerPoint (ppt, with LibreOffice)", PPT_MEDIA_TYPE, extract_ppt, looks_like_ppt),
    Format("images (with Tesseract)", IMAGE_MEDIA_TYPE, extract_image, can_read_image),
    *(
        Format(f"OpenDocument {kind}", media_type, extract, partial(looks_like_opendocument, media_type=media_type))
        for kind, media_type, extract in (
            ("text (odt)", ODT_MEDIA_TYPE, extract_odt),
            ("spreadsheet (ods)", ODS_MEDIA_TYPE, extract_ods),
            ("presentation (odp)", ODP_MEDIA_TYPE, extract_odp),
        )
    ),
    Format("EPUB", EPUB_MEDIA_TYPE, extract_epub, looks_like_epub),
    Format("rich text (rtf)", RTF_MEDIA_TYPE, extract_rtf, looks_like_rtf),
    Format("HTML", HTML_MEDIA_TYPE, extract_html, looks_like_html, frozenset({".html", ".htm", ".xhtml"})),
    Format("e-mail (eml)", EML_MEDIA_TYPE, extract_eml, looks_like_eml, frozenset({".eml"})),
    Format("Outlook message (msg)", MSG_MEDIA_TYPE, extract_msg, looks_like_msg),
    Format("mailbox (mbox)", MBOX_MEDIA_TYPE, extract_mbox, looks_like_mbox),
    Format("zip archive", ZIP_MEDIA_TYPE, extract_archive, looks_like_archive),
    Format("calendar (ics)", CALENDAR_MEDIA_TYPE, extract_calendar, looks_like_calendar, frozenset({".ics"})),
    Format("WebVTT", VTT_MEDIA_TYPE, extract_vtt, looks_like_vtt, frozenset({".vtt"})),
    Format("Markdown", MARKDOWN_MEDIA_TYPE, extract_markdown, None, frozenset({".md", ".markdown"}), heading_words),
    Format("MDX", MDX_MEDIA_TYPE, extract_mdx, None, frozenset({".mdx"}), heading_words),
    Format("AsciiDoc", ASCIIDOC_MEDIA_TYPE, extract_asciidoc, None, frozenset({".adoc", ".asciidoc"}), heading_words),
    Format("reStructuredText", RST_MEDIA_TYPE, extract_rst, None, frozenset({".rst", ".rest"}), heading_words),
    Format("Org", ORG_MEDIA_TYPE, extract_org, None, frozenset({".org"}), heading_words),
    Format("LaTeX", TEX_MEDIA_TYPE, extract_tex, None, frozenset({".tex", ".latex"}), heading_words),
    Format("notebook (ipynb)", NOTEBOOK_MEDIA_TYPE, extract_notebook, None, frozenset({".ipynb"}), heading_words),
    Format("JSON", JSON_MEDIA_TYPE, extract_json, suffixes=frozenset({".json", ".geojson"})),
    Format("JSON Lines", JSON_LINES_MEDIA_TYPE, extract_json_lines, suffixes=frozenset({".jsonl", ".ndjson"})),
    Format("YAML", YAML_MEDIA_TYPE, extract_yaml, suffixes=frozenset({".yaml", ".yml"})),
    Format("XML", XML_MEDIA_TYPE, extract_xml, suffixes=frozenset({".xml", ".dita", ".ditamap", ".rss", ".atom"})),
    Format("SubRip (srt)", SRT_MEDIA_TYPE, extract_srt, suffixes=frozenset({".srt"})),
    Format("csv", CSV_MEDIA_TYPE, extract_csv, suffixes=frozenset({".csv", ".tsv", ".tab"})),
    Format("plain text", TEXT_MEDIA_TYPE, extract_text, suffixes=frozenset({".txt", ".text", ".log", ""})),
)
# Usual suffixes of formats that only their content identifies, for the message about a file that is named wrongly.
_RECOGNISED_BY_CONTENT: Final = frozenset({
    ".pdf", ".docx", ".pptx", ".xlsx", ".xls", ".xlsb", ".rtf", ".odt", ".ods", ".odp", ".epub", ".zip", ".mbox",
    ".msg",
})  # fmt: skip

# Formats in the binary container of old Office files that are not supported.
_OLE_KINDS: Final = {
    WORD: "an old Word document (doc), which Word can save as docx",
    POWERPOINT: "an old PowerPoint presentation (ppt), which PowerPoint can save as pptx",
    VISIO: "an old Visio drawing (vsd)",
}
_SIGNATURES: Final = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"%!PS", "a PostScript file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"SQLite format 3", "a SQLite database"),
)


def known_formats() -> tuple[Format, ...]:
    """Return the formats of other packages, which may replace built-in ones, then the built-in ones."""
    return (*installed_formats().formats, *FORMATS)


def extractor_version() -> str:
    """Return the version that documents are read again for: `EXTRACTOR_VERSION` with those of installed formats."""
    return "+".join((EXTRACTOR_VERSION, *installed_formats().versions))


@contextmanager
def _parsing(found: Format) -> Generator[None]:
    """Turn any exception of a parser into an ExtractionError."""
    try:
        yield
    except ExtractionError:
        raise
    except MemoryError as error:
        detail = f"there is not enough memory to read it as {found.name}; split the file"
        raise ExtractionError(QuarantineReason.OUT_OF_MEMORY, detail) from error
    except Exception as error:
        # Parsers raise almost anything on defective input, and their messages may quote it at length.
        reason = one_line(f"{type(error).__name__}: {error}", 100)
        detail = f"cannot be read as {found.name} ({reason}); open it and save it again"
        raise ExtractionError(QuarantineReason.MALFORMED, detail) from error


def _finished(document: ExtractedDocument, found: Format, key: str) -> ExtractedDocument:
    """Return the document with a title and without its attachments; raise ExtractionError if it has no words."""
    if not has_words(document.text):
        detail = f"read as {found.name}, it has no letters or digits"
        if document.omissions:
            detail += "".join(f"; {omission.detail}" for omission in document.omissions)
        elif found.media_type == PDF_MEDIA_TYPE:
            detail += "; if it is a scan, run text recognition (OCR) on it first"
        raise ExtractionError(QuarantineReason.EMPTY, detail)
    return replace(document, title=document.title or title_of_key(key), attachments=(), omissions=())


@dataclass(frozen=True, slots=True)
class Part:
    """One document of an object: the object itself (with an empty name), or an attachment.

    Names are unique within the object and depend only on its bytes.
    """

    name: str
    document: ExtractedDocument


@dataclass(frozen=True, slots=True)
class RefusedPart:
    """An unreadable attachment of an object, or content that is missing from one of its documents."""

    name: str
    reason: QuarantineReason
    detail: str


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """The documents of one object, and what is missing from them."""

    parts: tuple[Part, ...]
    refused: tuple[RefusedPart, ...] = ()


def read_object(data: bytes, key: str) -> ParsedObject:
    """Parse a source object and its attachments, which become separate documents; `key` is the object's name.

    Raises ExtractionError, and nothing else that depends on the content, if the object itself is unreadable.
    """
    reader = _ObjectReader()
    reader.read(data, key, "", 0)
    return ParsedObject(tuple(reader.parts), tuple(reader.refused))


@dataclass(slots=True)
class _ObjectReader:
    """Parses an object and its attachments, depth first, within the limits for all of them together."""

    parts: list[Part] = field(default_factory=list[Part])
    refused: list[RefusedPart] = field(default_factory=list[RefusedPart])
    attached: int = 0
    attached_bytes: int = 0

    def read(self, data: bytes, key: str, name: str, depth: int) -> None:
        found = _format_of(data, key)
        with _parsing(found):
            document = found.extract(data)
            if found.media_type == PDF_MEDIA_TYPE:
                document = with_recognised_pages(document, data)
            document = without_excess(document)
        self.parts.append(Part(name, _finished(document, found, key)))
        for omission in document.omissions:
            self.refused.append(RefusedPart(_path(name, omission.name), QuarantineReason.INCOMPLETE, omission.detail))
        for attachment in document.attachments:
            path = _path(name, attachment.name)
            try:
                if attachment.reason is not None:
                    raise ExtractionError(attachment.reason, attachment.detail)
                self._count(attachment, depth + 1)
                self.read(attachment.data, attachment.name, path, depth + 1)
            except ExtractionError as error:
                self.refused.append(RefusedPart(path, error.reason, error.detail))

    def _count(self, attachment: Attachment, depth: int) -> None:
        self.attached += 1
        self.attached_bytes += len(attachment.data)
        exceeded = (
            (depth > MAX_ATTACHMENT_DEPTH, f"{MAX_ATTACHMENT_DEPTH} nested messages or archives"),
            (self.attached > MAX_ATTACHMENTS, f"{MAX_ATTACHMENTS} attachments per object"),
            (self.attached_bytes > MAX_ATTACHED_BYTES, f"{MAX_ATTACHED_BYTES // 2**20} MiB of attachments per object"),
        )
        limit = next((words for over, words in exceeded if over), None)
        if limit is not None:
            detail = f"the limit is {limit}; upload it as a separate file"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)


def _path(name: str, inner: str) -> str:
    """Return the name of something inside the part `name`."""
    return f"{name}/{inner}" if name else inner


def heading_text(document: ExtractedDocument, block: Block) -> str:
    """Return the text of a heading block on one line, without the markup of its format."""
    clean = next((known.heading for known in known_formats() if known.media_type == document.media_type), one_line)
    return clean(document.text[block.start : block.end])


def title_of_key(key: str) -> str:
    """Return a title made from the file's name, or from its folder's if the name is generic (`index`)."""
    path = PurePosixPath(key)
    stem = path.stem.strip("_-. ")
    if stem.lower() in ("", "index", "readme") and path.parent.name:
        stem = path.parent.name
    title = one_line(stem.replace("_", " ").replace("-", " ")) or one_line(key)
    return title[:1].upper() + title[1:]


def _format_of(data: bytes, key: str) -> Format:
    if not data:
        raise ExtractionError(QuarantineReason.EMPTY, "the file has no bytes")
    suffix = PurePosixPath(key).suffix.lower()
    by_name = next((known for known in known_formats() if suffix in known.suffixes), None)
    for known in known_formats():
        if known.recognise is not None and known.recognise(data):
            # Text about PDF files may contain their header, so in a file named as text it must come first.
            if known.media_type == PDF_MEDIA_TYPE and by_name is not None and not data.lstrip().startswith(b"%PDF-"):
                continue
            return known
    seen = _name_what_it_is(data)
    if by_name is not None and seen is None:
        return by_name
    if seen is None:
        seen = f"a {suffix} file" if suffix else "a file of unknown kind"
        if suffix in _RECOGNISED_BY_CONTENT:
            seen = f"a file named {suffix} whose content is not of that format"
    names = ", ".join(known.name for known in known_formats())
    detail = "; ".join((one_line(seen, 120), *installed_formats().failures, f"supported are {names}"))
    raise ExtractionError(QuarantineReason.UNSUPPORTED_TYPE, detail)


def _name_what_it_is(data: bytes) -> str | None:
    """Describe content that is certainly not text, else return None; raise ExtractionError if encrypted or damaged."""
    if data.startswith(OLE_SIGNATURE):
        refuse_encrypted(data)
        other = "an Office file of the old binary kind, which Office can save as docx, xlsx or pptx"
        return _OLE_KINDS.get(stream_of(data), other)
    if data.startswith(ZIP_SIGNATURE):
        names = zip_names(data)
        if not names:
            detail = "a truncated or damaged zip container; upload it again"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)
        return container_kind(names)
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    return "a binary file" if looks_binary(data) else None
