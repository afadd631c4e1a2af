"""Rich text (rtf): paragraphs with their notes, headings by style or outline level, lists, and tables row by row.

Parsed in one pass over the tokens, so the time is linear in the size. Existing libraries use patterns that take
quadratic time on hostile input, and keep neither headings nor tables.
"""

import codecs
import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rag_assets.extraction.decoding import normalise, refuse_oversized
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row

RTF_MEDIA_TYPE: Final = "application/rtf"

_SIGNATURE: Final = b"{\\rtf"
# A control word with its number, a hexadecimal byte, a control symbol, a brace, a line end (ignored), a run of text.
# The last alternative is a backslash at the end of the file.
_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?[0-9]{1,10})?[ ]?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n]+|([^\\{}\r\n]+)|\\",
    re.DOTALL,
)
_HEADING_STYLE = re.compile(r"heading ([1-9])\b", re.IGNORECASE)
_OUTLINE_LEVELS: Final = 9
_MAX_GROUPS: Final = 100_000

_CHARACTERS: Final = {
    "tab": "\t", "line": "\n", "emdash": "\u2014", "endash": "\u2013", "bullet": "\u2022", "lquote": "\u2018",
    "rquote": "\u2019", "ldblquote": "\u201c", "rdblquote": "\u201d", "emspace": " ", "enspace": " ", "qmspace": " ",
    "nestcell": " ", "nestrow": " ", "~": "\u00a0", "_": "\u2011", "{": "{", "}": "}", "\\": "\\", "\n": "\n",
    "\r": "\n",
}  # fmt: skip
# Groups that are not text of the document, besides those that start with a star and an unknown word.
_NOT_TEXT: Final = frozenset({
    "colortbl", "header", "headerl", "headerr", "headerf", "footer", "footerl", "footerr", "footerf",
    "pict", "fldinst", "datafield", "objdata", "nonshppict", "listtable", "listoverridetable", "revtbl", "rsidtbl",
    "filetbl", "themedata", "datastore", "xmlnstbl", "bkmkstart", "bkmkend", "atnid", "atnauthor",
    "shprslt", "sp", "generator", "latentstyles", "pgdsctbl", "xe", "tc", "info", "nonesttables",
})  # fmt: skip
# Destinations of text that describes the document.
_FONTS: Final = "fonttbl"
# Destinations of notes, and what to call them in the text.
_NOTES: Final = {"footnote": "Footnote", "annotation": "Comment"}
_STYLES: Final = "stylesheet"
_TITLE: Final = "title"
_SKIP: Final = "skip"

# Code pages by the character set of a font, and by the control word of a document.
_CHARSETS: Final = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "cp950", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874",
    238: "cp1250", 254: "cp437", 255: "cp850",
}  # fmt: skip
_DOCUMENT_CHARSETS: Final = {"ansi": "cp1252", "mac": "mac_roman", "pc": "cp437", "pca": "cp850"}


class _State(NamedTuple):
    """The state that a closing brace restores."""

    destination: str = ""
    unicode_skip: int = 1
    font: int = -1
    hidden: bool = False
    style: int = -1
    outline: int = 0
    listed: bool = False
    indent: int = 0
    in_table: bool = False


def looks_like_rtf(data: bytes) -> bool:
    """Return whether the content starts like rich text."""
    return data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_SIGNATURE)


def extract_rtf(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large."""
    refuse_oversized(data)
    reader = _Reader()
    position, end = 0, len(data)
    while position < end:
        match = _TOKEN.match(data, position)
        if match is None:
            break
        position = match.end() + reader.take(match)
    return reader.finish()


@dataclass(slots=True)
class _Reader:
    """Follows the state from token to token and writes paragraphs as they end."""

    document: DocumentBuilder = field(default_factory=lambda: DocumentBuilder(RTF_MEDIA_TYPE))
    codec: str = "cp1252"
    state: _State = field(default_factory=_State)
    _stack: list[_State] = field(default_factory=list[_State])
    _too_deep: int = 0
    _starred: bool = False
    _group_begins: bool = False
    _to_skip: int = 0
    _bytes: bytearray = field(default_factory=bytearray)
    _text: list[str] = field(default_factory=list[str])
    _cells: list[str] = field(default_factory=list[str])
    _rows: list[str] = field(default_factory=list[str])
    _fonts: dict[int, str] = field(default_factory=dict[int, str])
    _font: int = -1
    _levels: dict[int, int] = field(default_factory=dict[int, int])
    _style_name: list[str] = field(default_factory=list[str])
    _note: list[str] = field(default_factory=list[str])
    _notes: list[str] = field(default_factory=list[str])
    """The notes of the current paragraph or cell."""
    _title: list[str] = field(default_factory=list[str])

    def take(self, token: re.Match[bytes]) -> int:
        """Process one token; return how many bytes after it are not tokens."""
        word, number, hexadecimal, symbol, brace, run = token.groups()
        begins = self._group_begins
        is_line_end = token.lastindex is None
        self._group_begins = brace == b"{" or (begins and (symbol == b"*" or is_line_end))
        if run is not None:
            self._take_bytes(run)
        elif word is not None:
            return self._word(word.decode("ascii"), None if number is None else int(number), begins)
        elif hexadecimal is not None:
            self._take_bytes(bytes.fromhex(hexadecimal.decode("ascii")))
        elif brace is not None:
            self._to_skip = 0
            self._open() if brace == b"{" else self._close()
        elif symbol == b"*":
            self._starred = True
        elif symbol is not None and self._to_skip:
            self._to_skip -= 1
        elif symbol is not None:
            self._add(_CHARACTERS.get(symbol.decode("latin-1"), ""))
        return 0

    def finish(self) -> ExtractedDocument:
        self._end_paragraph()
        self._end_table()
        self.document.title = one_line("".join(self._title))
        return self.document.build()

    def _open(self) -> None:
        self._starred = False
        # No program nests groups so deeply; all deeper groups share one state.
        if len(self._stack) < _MAX_GROUPS:
            self._stack.append(self.state)
        else:
            self._too_deep += 1

    def _close(self) -> None:
        self._flush()
        if self._too_deep:
            self._too_deep -= 1
        elif self._stack:
            if self.state.destination == _STYLES:
                self._end_style()
            ended, self.state = self.state.destination, self._stack.pop()
            if ended in _NOTES and self.state.destination != ended:
                self._end_note(ended)

    def _word(self, word: str, number: int | None, begins: bool) -> int:
        """Process a control word; `begins` is whether it is the first of its group."""
        if self._to_skip and word not in ("u", "bin"):
            self._to_skip -= 1
            return 0
        starred, self._starred = self._starred, False
        state = self.state
        value = 0 if number is None else number
        if word == "u":
            self._to_skip = state.unicode_skip
            self._add(chr(value % 0x10000))
        elif word == "bin":
            return max(0, value)
        elif word in (_FONTS, _STYLES, "info") or (word == _TITLE and state.destination == "info"):
            self._change(destination=word)
        elif word in ("ud", "shptxt"):
            # The Unicode version of the text before it, and the text of a text box.
            self._change(destination="")
        elif word in ("listtext", "pntext"):
            # The mark of a list item is in a group of its own, but makes an item of the paragraph around it.
            self._change(destination=_SKIP, listed=True)
            if self._stack:
                self._stack[-1] = self._stack[-1]._replace(listed=True)
        elif word in _NOTES and not state.destination:
            self._change(destination=word, hidden=False)
        elif self._is_skipped(word, starred, begins):
            self._change(destination=_SKIP)
        elif word in _CHARACTERS:
            self._add(_CHARACTERS[word])
        elif state.destination == _FONTS:
            self._font_word(word, value)
        else:
            self._property(word, number, value)
        return 0

    def _is_skipped(self, word: str, starred: bool, begins: bool) -> bool:
        """Return whether a word makes the rest of its group something other than text.

        A word that a program put into the middle of a group must not remove the text after it.
        """
        if word in _NOT_TEXT:
            return begins or len(self._stack) > 1
        return starred and begins

    def _font_word(self, word: str, value: int) -> None:
        if word == "f":
            self._font = value
        elif word == "fcharset" and value in _CHARSETS:
            self._fonts[self._font] = _CHARSETS[value]
        elif word == "cpg":
            self._fonts[self._font] = f"cp{value}"

    def _property(self, word: str, number: int | None, value: int) -> None:
        on = number is None or value != 0
        if word in ("par", "sect", "page"):
            self._paragraph_mark()
        elif word == "cell":
            self._flush()
            if not self.state.destination:
                self._cells.append("\n".join(("".join(self._text), *self._take_notes())))
                self._text.clear()
        elif word in ("row", "trowd"):
            self._end_row()
        elif word == "pard":
            self._change(style=-1, outline=0, listed=False, indent=0, in_table=False)
        elif word == "plain":
            self._change(font=-1, hidden=False)
        elif word == "f":
            self._change(font=value)
        elif word == "uc":
            self._change(unicode_skip=max(0, value))
        elif word in ("v", "deleted"):
            self._change(hidden=on)
        elif word == "s":
            self._change(style=value)
        elif word == "outlinelevel":
            self._change(outline=value + 1 if 0 <= value < _OUTLINE_LEVELS else 0)
        elif word in ("ls", "pnlvlblt", "pnlvlbody"):
            self._change(listed=on)
        elif word == "ilvl":
            self._change(indent=max(0, value))
        elif word == "intbl":
            self._change(in_table=on)
        elif word == "ansicpg" or word in _DOCUMENT_CHARSETS:
            self._flush()
            self.codec = _known(_DOCUMENT_CHARSETS.get(word, f"cp{value}"))

    def _change(self, **changes: object) -> None:
        self._flush()
        self.state = self.state._replace(**changes)  # pyright: ignore[reportArgumentType]

    def _take_bytes(self, run: bytes) -> None:
        if self._to_skip:
            skipped = min(self._to_skip, len(run))
            self._to_skip -= skipped
            run = run[skipped:]
        self._starred = False
        if self.state.destination not in (_SKIP, _FONTS, "info"):
            self._bytes += run

    def _flush(self) -> None:
        """Decode the bytes since the last change of state; a character may take several of them."""
        if self._bytes:
            data = bytes(self._bytes)
            self._bytes.clear()
            self._write(data.decode(_known(self._fonts.get(self.state.font, self.codec)), errors="replace"))

    def _add(self, character: str) -> None:
        self._flush()
        self._write(character)

    def _write(self, text: str) -> None:
        destination = self.state.destination
        if destination == _STYLES:
            self._style_name.append(text)
        elif destination == _TITLE:
            self._title.append(text)
        elif destination in _NOTES and not self.state.hidden:
            self._note.append(text)
        elif not destination and not self.state.hidden:
            self._text.append(text)

    def _end_note(self, destination: str) -> None:
        text = " ".join(_joined(self._note).split())
        self._note.clear()
        if text:
            self._notes.append(f"{_NOTES[destination]}: {text}")

    def _take_notes(self) -> list[str]:
        notes, self._notes = self._notes, []
        return notes

    def _end_style(self) -> None:
        name = "".join(self._style_name).strip(" ;")
        self._style_name.clear()
        heading = _HEADING_STYLE.match(name)
        level = int(heading[1]) if heading else 1 if name.lower() == "title" else self.state.outline
        if self.state.style >= 0 and level:
            self._levels[self.state.style] = min(level, 6)

    def _paragraph_mark(self) -> None:
        self._flush()
        if self.state.destination in _NOTES:
            self._note.append(" ")
        if self.state.destination:
            return
        if self.state.in_table:
            self._text.append("\n")
        else:
            self._end_paragraph()

    def _end_paragraph(self) -> None:
        self._flush()
        notes = self._take_notes()
        text = _joined(self._text).strip()
        self._text.clear()
        if not text and not notes:
            return
        self._end_table()
        level = min(self.state.outline, 6) or self._levels.get(self.state.style, 0)
        with_notes = "\n".join((text, *notes)).strip()
        if level:
            self.document.add(BlockKind.HEADING, one_line(text, len(text)), level=level)
            self.document.add(BlockKind.PARAGRAPH, "\n".join(notes))
        elif self.state.listed:
            self.document.add_item(with_notes, depth=self.state.indent)
        else:
            self.document.add(BlockKind.PARAGRAPH, with_notes)

    def _end_row(self) -> None:
        if not self._cells:
            return
        self.document.end_list()
        row = table_row(_joined([cell]) for cell in self._cells)
        self._cells.clear()
        if row:
            self._rows.append(row)

    def _end_table(self) -> None:
        self._end_row()
        rows, self._rows = self._rows, []
        if rows:
            self.document.add(BlockKind.TABLE, "\n".join(rows))


def _joined(parts: list[str]) -> str:
    """Join the parts, and combine the surrogates that rtf writes for characters beyond the basic plane."""
    text = "".join(parts)
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return normalise(text)


def _known(codec: str) -> str:
    try:
        codecs.lookup(codec)
    except LookupError:
        return "cp1252"
    return codec
