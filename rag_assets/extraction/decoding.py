"""Bytes to clean text: finding the encoding, and the one normalisation for every extracted text."""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import Final

from rag_assets.extraction.errors import ExtractionError, QuarantineReason

MAX_TEXT_BYTES: Final = 64 * 1024 * 1024
_SAMPLE_BYTES: Final = 256 * 1024

# utf-32 first: its little-endian mark begins with the mark of utf-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Controls, lone surrogates (no tokenizer takes them), the byte order mark and the invisible soft hyphen.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\ud800-\udfff\ufeff\xad]")
_SEVEN_BIT = re.compile(r"utf-?7\Z|hz|iso-?2022", re.IGNORECASE)
_CONTROL_BYTES: Final = bytes(b for b in range(32) if b not in b"\t\n\r\x0b\x0c\x1b")


def normalise(text: str) -> str:
    """NFC text with "\\n" line ends and without control characters, lone surrogates or invisible hyphens."""
    text = _UNWANTED.sub("", _LINE_BREAKS.sub("\n", text))
    # After the removal: taking a character out can put a letter and its accent side by side.
    return unicodedata.normalize("NFC", text)


def refuse_oversized(data: bytes) -> None:
    """Raise ExtractionError(too_large) for a text input of more than `MAX_TEXT_BYTES`."""
    if len(data) > MAX_TEXT_BYTES:
        detail = f"text of {len(data) / 2**20:.0f} MiB; the limit is {MAX_TEXT_BYTES // 2**20} MiB, split the file"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)


def looks_binary(data: bytes) -> bool:
    """Whether the first kilobytes hold more control bytes than text does."""
    if any(data.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS):
        return False
    head = data[:4096]
    controls = len(head) - len(head.translate(None, _CONTROL_BYTES))
    return controls > max(4, len(head) // 20)


def decode(data: bytes, *, declared: str | None = None) -> str:
    """The text of `data`, not yet normalised.

    Tried in order: a byte order mark, the encodings of seven-bit bytes where they show, utf-8, the encoding
    that the document itself declares, utf-8 with a few broken bytes, detection.
    Raises ExtractionError: too_large above `MAX_TEXT_BYTES`, malformed when nothing fits.
    """
    refuse_oversized(data)
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    for encoding in (*_seven_bit(data, declared), "utf-8", declared):
        text = None if encoding is None else _decode_strictly(data, encoding)
        if text is not None:
            return text
    return _decode_detected(data)


def _seven_bit(data: bytes, declared: str | None) -> tuple[str, ...]:
    """Encodings whose bytes are all valid utf-8 too, so that they have to be tried before it."""
    if b"\x1b$" in data or b"\x1b(" in data:
        return (declared or "iso2022_jp_2", "iso2022_jp_2")
    return (declared,) if declared is not None and _SEVEN_BIT.match(declared) else ()


def _decode_strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (LookupError, UnicodeDecodeError):
        # Documents often declare an encoding that does not exist or is not theirs; the next candidate
        # decides.
        return None


def _decode_detected(data: bytes) -> str:
    # One bad byte in a utf-8 page must not turn all its accents into another alphabet. Text of other
    # encodings practically never forms valid multi-byte sequences, so a large majority of valid ones is
    # proof enough.
    repaired = data.decode("utf-8", errors="replace")
    broken = repaired.count("\ufffd")
    beyond_ascii = len(repaired) - len(repaired.encode("ascii", errors="ignore"))
    if broken * 20 <= beyond_ascii:
        return repaired

    import charset_normalizer

    sample = data
    if len(sample) > _SAMPLE_BYTES:
        # Cut at a line end, so that no character of several bytes is torn.
        end = sample.rfind(b"\n", 0, _SAMPLE_BYTES)
        sample = sample[: end if end > 0 else _SAMPLE_BYTES]
    best = charset_normalizer.from_bytes(sample).best()
    if best is None:
        detail = "the text is in no encoding that could be recognised; save it as UTF-8"
        raise ExtractionError(QuarantineReason.MALFORMED, detail)
    return data.decode(best.encoding, errors="replace")
