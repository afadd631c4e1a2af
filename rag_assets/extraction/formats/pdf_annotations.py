"""What readers see on a PDF beside its pages' own text: values of form fields, notes and attached files."""

import ctypes
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rag_assets.extraction.decoding import normalise
from rag_assets.extraction.document import Attachment, attachment_name, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.pdf_layout import Box, Segment

MAX_ATTACHMENTS: Final = 200
_MAX_NAME: Final = 120
_MAX_ANNOTATIONS: Final = 2_000
"""Of a page; the others are ignored."""
_MAX_VALUE: Final = 32_000
"""Characters of a value or note; longer ones are ignored."""

_HIDDEN: Final = 0x02 | 0x20  # flags: hidden, and not shown on the screen
_PASSWORD: Final = 1 << 13
_CHECKED: Final = "[x]"


class AnnotationReader:
    """Reads the annotations of a document's pages, and collects the files that are attached to them."""

    def __init__(self, pdf: Any) -> None:
        import pypdfium2.raw  # pyright: ignore[reportMissingTypeStubs]

        self._raw: Any = pypdfium2.raw
        # Only a form needs the environment that computes the values of its fields.
        self._pdf = pdf
        self._attachments: dict[str, Attachment] = {}
        self._has_form = pdf.get_formtype() != self._raw.FORMTYPE_NONE

    def read(self, page: Any) -> tuple[list[Segment], list[str]]:
        """Return the values of the page's fields with their places, and the texts of its notes."""
        values: list[Segment] = []
        notes: list[str] = []
        for index in range(min(self._raw.FPDFPage_GetAnnotCount(page), _MAX_ANNOTATIONS)):
            with self._annotation(page, index) as annotation:
                if not annotation or self._raw.FPDFAnnot_GetFlags(annotation) & _HIDDEN:
                    continue
                kind = self._raw.FPDFAnnot_GetSubtype(annotation)
                if kind == self._raw.FPDF_ANNOT_WIDGET:
                    values += self._value(annotation)
                elif kind == self._raw.FPDF_ANNOT_FILEATTACHMENT:
                    self._attach(self._raw.FPDFAnnot_GetFileAttachment(annotation))
                else:
                    notes += self._note(annotation, kind)
        return values, notes

    def attachments(self) -> tuple[Attachment, ...]:
        """Return the files attached to the document and to the pages read; raise ExtractionError if too many."""
        for index in range(min(self._raw.FPDFDoc_GetAttachmentCount(self._pdf), MAX_ATTACHMENTS + 1)):
            self._attach(self._raw.FPDFDoc_GetAttachment(self._pdf, index))
        return tuple(self._attachments.values())

    def _attach(self, pointer: Any) -> None:
        import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

        if not pointer:
            return
        attachment: Any = pypdfium2.PdfAttachment(pointer, self._pdf)
        try:
            data = bytes(attachment.get_data())
        except pypdfium2.PdfiumError:
            return  # the entry has no file
        name = one_line(normalise(attachment.get_name()).replace("/", "_").replace("\\", "_"), _MAX_NAME)
        name = attachment_name(name or "attachment", self._attachments)
        self._attachments[name] = Attachment(name, data)
        if len(self._attachments) > MAX_ATTACHMENTS:
            detail = f"more than {MAX_ATTACHMENTS} attached files; upload them as separate files"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)

    @contextmanager
    def _annotation(self, page: Any, index: int) -> Generator[Any]:
        annotation = self._raw.FPDFPage_GetAnnot(page, index)
        try:
            yield annotation
        finally:
            if annotation:
                self._raw.FPDFPage_CloseAnnot(annotation)

    def _note(self, annotation: Any, kind: int) -> Iterator[str]:
        raw = self._raw
        if kind in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP):
            return
        text = self._entry(annotation, b"Contents")
        if text:
            yield text if kind in (raw.FPDF_ANNOT_FREETEXT, raw.FPDF_ANNOT_STAMP) else f"Comment: {text}"

    def _value(self, annotation: Any) -> Iterator[Segment]:
        raw = self._raw
        if not self._has_form:
            return
        if self._pdf.formenv is None:
            # It reads the tree of all fields, which takes long if they refer to each other many times.
            self._pdf.init_forms()
        form = self._pdf.formenv
        kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
        if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
            text = _CHECKED if self._entry(annotation, b"AS") not in ("", "Off") else ""
        elif kind in (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
            is_secret = kind == raw.FPDF_FORMFIELD_TEXTFIELD and (
                raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD
            )
            text = "" if is_secret else self._field_text(annotation)
        else:
            return
        rectangle = raw.FS_RECTF()
        if text and raw.FPDFAnnot_GetRect(annotation, rectangle):
            left, right = sorted((rectangle.left, rectangle.right))
            bottom, top = sorted((rectangle.bottom, rectangle.top))
            yield Segment(text, Box(left, bottom, right, top))

    def _entry(self, annotation: Any, key: bytes) -> str:
        raw = self._raw
        return _string(lambda buffer, size: raw.FPDFAnnot_GetStringValue(annotation, key, buffer, size))

    def _field_text(self, annotation: Any) -> str:
        raw, form = self._raw, self._pdf.formenv
        return _string(lambda buffer, size: raw.FPDFAnnot_GetFormFieldValue(form, annotation, buffer, size))


def _string(read: Callable[[Any, int], int]) -> str:
    """Return a string that PDFium writes to a buffer, on one line; `read` returns how many bytes it needs."""
    size = read(None, 0)
    if not 2 < size <= 2 * _MAX_VALUE:
        return ""
    buffer = ctypes.create_string_buffer(size)
    read(ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), size)
    text = normalise(buffer.raw[: size - 2].decode("utf-16-le", errors="replace"))
    return one_line(text, _MAX_VALUE)
