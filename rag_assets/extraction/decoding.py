"""Decode bytes of unknown encoding, and normalise every extracted text."""

import codecs
import re
import string
import unicodedata
from collections import Counter
from typing import Final

from rag_assets.extraction.errors import ExtractionError, QuarantineReason

MAX_TEXT_BYTES: Final = 64 * 1024 * 1024
_SAMPLE_BYTES: Final = 256 * 1024

# utf-32 comes first: its little-endian mark starts with that of utf-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Control characters, lone surrogates (which tokenizers reject), the byte order mark and the soft hyphen.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\ud800-\udfff\ufeff\xad]")
# The data may be wrapped into long lines.
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.=+-]+)*;base64,[\w+/=%-]*(?:\n[ \t]*[A-Za-z0-9+/]{40,}=*)*")
_PICTURE_URI = re.compile(r"data:image/[\w.+-]+(?:;[\w.=+-]+)*,[^\s()<>\"']*")
_SEVEN_BIT = re.compile(r"utf-?7\Z|hz|iso-?2022", re.IGNORECASE)
# Encodings in use. With all that it knows, the detector would find mainframe code pages in short texts.
_DETECTED: Final = [
    "cp1251", "cp1252", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "cp850", "cp852",
    "cp866", "koi8_r", "koi8_u", "iso8859_2", "iso8859_5", "iso8859_7", "iso8859_8", "mac_roman", "mac_cyrillic",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
]  # fmt: skip
_LATIN: Final = frozenset(
    {"cp1252", "cp1250", "cp1254", "cp1257", "cp1258", "cp850", "cp852", "iso8859_2", "mac_roman"}
)
_MULTI_BYTE: Final = frozenset({"cp932", "euc_jp", "gb18030", "big5", "cp949"})
# The non-ASCII letters of the languages of each Latin code page, the likelier page first.
_ALPHABETS: Final = {
    "cp1252": (
        "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíóúüñ", "áâãàçéêíóôõúü", "àèéìíîòóùú", "åäöéæøü", "áéíóúýþæöð", "éëïèöüçêá",
        "àçéèíïóòúü",
    ),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž"),
    "cp1254": ("çğıöşüâîû\u0307",),
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äöõüšž"),
}  # fmt: skip
_ALPHABET_COVERS: Final = 0.9
_HIGH_LETTER = re.compile(r"[^\x00-\x7f\u2013\u2014\u2018-\u201e\u2022\u2026\u20ac\xa0\xa7\xab\xbb\xb0\xa9\xae\xad]")
_HIRAGANA = re.compile("[\u3041-\u3096]")
_UTF16_SHARE: Final = 0.1
_UTF16_SAMPLE: Final = 4096
_NOT_IN_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_CONTROL_BYTES: Final = bytes(b for b in range(32) if b not in b"\t\n\r\x0b\x0c\x1b")


def normalise(text: str) -> str:
    """Return NFC text with newlines as line ends, without control characters, lone surrogates and embedded files."""
    text = _UNWANTED.sub("", _LINE_BREAKS.sub("\n", text))
    if ";base64," in text:
        text = _DATA_URI.sub("", text)
    if "data:image/" in text:
        text = _PICTURE_URI.sub("", text)
    # Last, because removing a character can bring a letter and its accent together.
    return unicodedata.normalize("NFC", text)


def refuse_oversized(data: bytes) -> None:
    """Raise ExtractionError(too_large) if a text file has more than `MAX_TEXT_BYTES`."""
    if len(data) > MAX_TEXT_BYTES:
        detail = f"text of {len(data) / 2**20:.0f} MiB; the limit is {MAX_TEXT_BYTES // 2**20} MiB, split the file"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)


def looks_binary(data: bytes) -> bool:
    """Return whether the first kilobytes have more control bytes than text has."""
    if any(data.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS) or _unmarked_utf16(data) is not None:
        return False
    head = data[:4096]
    controls = len(head) - len(head.translate(None, _CONTROL_BYTES))
    return controls > max(4, len(head) // 20)


def decode(data: bytes, *, declared: str | None = None) -> str:
    """Decode `data`, without normalising it.

    Tries in order: the byte order mark, utf-16 without one, seven-bit encodings, utf-8, the `declared` encoding, utf-8
    with a few broken bytes, detection. Raises ExtractionError: too_large above `MAX_TEXT_BYTES`, malformed if nothing
    fits.
    """
    refuse_oversized(data)
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    for encoding in (_unmarked_utf16(data), *_seven_bit(data, declared), "utf-8", declared):
        text = None if encoding is None else _decode_strictly(data, encoding)
        if text is not None:
            return text
    return _decode_detected(data)


def _unmarked_utf16(data: bytes) -> str | None:
    """Return the utf-16 encoding of text without a byte order mark; None if it is not such text.

    Its zero bytes would be valid, but invisible, utf-8. In binary data, some pairs of bytes are not characters.
    """
    sample = data[:_UTF16_SAMPLE]
    if b"\0" not in sample:
        return None
    # A few stray zeros do not make text of another encoding utf-16, whose bytes are often no ASCII characters.
    beyond_ascii = len(sample) - len(sample.translate(None, _CONTROL_BYTES + bytes(range(128, 256))))
    if beyond_ascii < _UTF16_SHARE * len(sample):
        return None
    ascii_characters = {encoding: _count_ascii(sample, encoding) for encoding in ("utf-16-le", "utf-16-be")}
    best = max(ascii_characters, key=lambda encoding: ascii_characters[encoding])
    return best if ascii_characters[best] else None


def _count_ascii(sample: bytes, encoding: str) -> int:
    """Return how many characters of the text are ASCII, which all text has; 0 if it has what no text has."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return 0
    if any(unicodedata.category(character) in ("Cn", "Co") for character in text) or _NOT_IN_TEXT.search(text):
        return 0
    return sum(map(str.isascii, text))


def _seven_bit(data: bytes, declared: str | None) -> tuple[str, ...]:
    """Return the encodings to try before utf-8, because their bytes are valid utf-8, too."""
    if b"\x1b$" in data or b"\x1b(" in data:
        return (declared or "iso2022_jp_2", "iso2022_jp_2")
    return (declared,) if declared is not None and _SEVEN_BIT.match(declared) else ()


def _decode_strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (LookupError, UnicodeDecodeError):  # documents often declare an unknown or wrong encoding
        return None


def _decode_detected(data: bytes) -> str:
    # One bad byte in a utf-8 page must not turn all its accents into another alphabet. Text in other encodings hardly
    # ever forms valid multi-byte sequences, so a large majority of valid ones is sufficient proof.
    repaired = data.decode("utf-8", errors="replace")
    broken = repaired.count("\ufffd")
    beyond_ascii = len(repaired) - len(repaired.encode("ascii", errors="ignore"))
    if broken * 20 <= beyond_ascii:
        return repaired

    import charset_normalizer

    kana = _decode_strictly(data, "euc_jp")
    # Half of all Japanese characters are kana, whose bytes are rarely valid in the Chinese and Korean encodings.
    if kana is not None and len(_HIRAGANA.findall(kana)) * 5 > len(kana) - len(kana.encode("ascii", errors="ignore")):
        return kana

    sample = data
    if len(sample) > _SAMPLE_BYTES:
        # Cut at a line end, so that no multi-byte character is split.
        end = sample.rfind(b"\n", 0, _SAMPLE_BYTES)
        sample = sample[: end if end > 0 else _SAMPLE_BYTES]
    mostly_latin = _is_mostly_latin(sample)
    candidates = [encoding for encoding in _DETECTED if mostly_latin or encoding not in _LATIN]
    best = charset_normalizer.from_bytes(sample, cp_isolation=candidates).best()
    if mostly_latin and (best is None or best.encoding not in _MULTI_BYTE):
        latin = _latin_code_page(sample)
        text = None if latin is None else _decode_strictly(data, latin)
        if text is not None:
            return text
    if best is None:
        detail = "the encoding of the text could not be detected; save it as UTF-8"
        raise ExtractionError(QuarantineReason.MALFORMED, detail)
    return data.decode(best.encoding, errors="replace")


def _is_mostly_latin(sample: bytes) -> bool:
    """Return whether there is an ASCII letter for every two non-ASCII bytes, as in any language of Latin script."""
    ascii_letters = len(sample) - len(sample.translate(None, string.ascii_letters.encode()))
    beyond_ascii = len(sample) - len(sample.translate(None, bytes(range(128, 256))))
    return 2 * ascii_letters >= beyond_ascii


def _latin_code_page(sample: bytes) -> str | None:
    """Return the code page in which nearly all non-ASCII letters belong to one European language; None if none does.

    The detector relies on letter pairs, which are too few in short texts, and then prefers Central European pages. The
    alphabet of a text shows from its first line.
    """
    best, found = _ALPHABET_COVERS, None
    for encoding, alphabets in _ALPHABETS.items():
        text = _decode_strictly(sample, encoding)
        if text is None:
            continue
        letters = Counter(_HIGH_LETTER.findall(text.lower()))
        covered = max(sum(letters[letter] for letter in alphabet) for alphabet in alphabets)
        share = covered / letters.total() if letters else 1.0
        if share > best or (share == best == 1.0 and found is None):
            best, found = share, encoding
    return found
