r"""LaTeX: headings, lists, tables and text; comments, the preamble and commands without text are left out.

Macros are not expanded, so a text that defines its own keeps their arguments only.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.formats.markup.as_markdown import code, heading, markdown_document, table

TEX_MEDIA_TYPE: Final = "text/x-tex"

_LEVELS: Final = {
    "part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4, "paragraph": 5, "subparagraph": 6,
}  # fmt: skip
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*")
_TITLE = re.compile(r"\\title\s*(?:\[[^\]]{0,500}\]\s*)?\{([^{}]{1,1000})\}")
_BODY = re.compile(r"\\begin\s*\{document\}")
_END = re.compile(r"\\end\s*\{document\}")
_VERBATIM = re.compile(r"\\begin\{(verbatim\*?|lstlisting|minted|alltt)\}(?:\[[^\]\n]*\])?(?:\{([\w+#-]*)\})?")
_TABULAR = re.compile(r"\\begin\{(tabular[xy*]?|longtable|array)\}")
_COLUMNS = re.compile(r"\A(?:\s*(?:\[[^\]]{0,200}\]|\{(?:[^{}]|\{[^{}]{0,200}\}){0,500}\}))+")
_RULES = re.compile(r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|cline\{[^}]*\}|cmidrule\{[^}]*\})")
_SECTION = re.compile(
    r"\\(part|chapter|section|subsection|subsubsection|paragraph|subparagraph)\*?\s*(?:\[[^\]]{0,500}\]\s*)?"
    r"\{((?:[^{}]|\{[^{}]{0,500}\}){0,1000})\}"
)
_ITEM = re.compile(r"\\item\b\s*(?:\[([^\]]{0,200})\])?")
_WITHOUT_TEXT = re.compile(
    r"\\(?:label|ref|eqref|pageref|cite\w*|input|include\w*|usepackage|vspace\*?|hspace\*?|bibliography\w*|"
    r"setlength|setcounter|newcommand|renewcommand|begin|end|index|thispagestyle|pagestyle)"
    r"\s*(?:\[[^\]]{0,500}\]\s*)*(?:\{[^{}]{0,1000}\})*(?:\[[^\]]{0,500}\])?"
)
_LINK = re.compile(r"\\href\s*\{[^{}]{0,2000}\}\s*\{([^{}]{0,2000})\}")
_FOOTNOTE = re.compile(r"\\footnote\s*\{([^{}]{0,5000})\}")
_ACCENT = re.compile(r"""\\(["'`^~=.]|[uvHckr](?=\s*\{|\s+))\s*(?:\{\\?([A-Za-z])\}|\\?([A-Za-z]))""")
_COMBINING: Final = {
    '"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "=": "\u0304", ".": "\u0307",
    "u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "k": "\u0328", "r": "\u030a",
}  # fmt: skip
_LETTERS = re.compile(r"\\(ss|ae|AE|oe|OE|o|O|aa|AA|l|L|i|j|S|P|euro|dots|ldots|textbackslash)\b(?:\{\})?\s?")
_OF_LETTERS: Final = {
    "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "aa": "å", "AA": "Å", "l": "ł",
    "L": "Ł", "i": "i", "j": "j", "S": "§", "P": "¶", "euro": "€", "dots": "…", "ldots": "…", "textbackslash": " ",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z@]+\*?[ \t]*(?:\[[^\]\n]{0,500}\])?")
_ESCAPE = re.compile(r"\\([&%$#_{}])")
_BRACES = re.compile(r"(?<!\\)[{}]")


def extract_tex(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    source = normalise(decode(data))
    title = _TITLE.search(source)
    body = _BODY.search(source)
    end = _END.search(source)
    text = source[body.end() if body else 0 : end.start() if end else len(source)]
    return markdown_document(_markdown(text), TEX_MEDIA_TYPE, _words(title[1]) if title else "")


def _markdown(text: str) -> Iterator[str]:
    """Yield Markdown lines: code as it is, everything else without commands."""
    at = 0
    while found := _VERBATIM.search(text, at):
        yield from _prose(text[at : found.start()])
        end = text.find(f"\\end{{{found[1]}}}", found.end())
        end = len(text) if end < 0 else end
        yield from code(text[found.end() : end].split("\n"), found[2] or "")
        at = end
    yield from _prose(text[at:])


def _prose(text: str) -> Iterator[str]:
    text = _COMMENT.sub(r"\1", text)
    at = 0
    while found := _TABULAR.search(text, at):
        yield from _lines(text[at : found.start()])
        end = text.find(f"\\end{{{found[1]}}}", found.end())
        end = len(text) if end < 0 else end
        yield from table(_rows(text[found.end() : end]))
        at = end
    yield from _lines(text[at:])


def _rows(body: str) -> list[list[str]]:
    body = _RULES.sub("", _COLUMNS.sub("", body))
    rows = ([_words(cell) for cell in re.split(r"(?<!\\)&", row)] for row in body.split("\\\\"))
    return [row for row in rows if any(row)]


def _lines(text: str) -> Iterator[str]:
    at = 0
    for found in _SECTION.finditer(text):
        yield from _words(text[at : found.start()]).split("\n")
        yield from heading(_LEVELS[found[1]], " ".join(_words(found[2]).split()))
        at = found.end()
    yield from _words(text[at:]).split("\n")


def _words(text: str) -> str:
    """Return text without commands and braces, with its paragraphs and list items."""
    text = _ACCENT.sub(_accented, text)
    text = _LETTERS.sub(lambda found: _OF_LETTERS[found[1]], text)
    text = _ITEM.sub(lambda found: "\n- " + (f"{found[1]}: " if found[1] else ""), text)
    text = _FOOTNOTE.sub(r" (\1)", _LINK.sub(r"\1", text))
    text = _WITHOUT_TEXT.sub("", text).replace("\\\\", "\n")
    text = _BRACES.sub("", _COMMAND.sub("", text))
    text = _ESCAPE.sub(r"\1", text)
    text = text.replace("~", " ").replace("---", "—").replace("--", "–").replace("``", "“").replace("''", "”")
    return "\n".join(line.strip() for line in text.split("\n")).strip()


def _accented(found: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", (found[2] or found[3]) + _COMBINING[found[1]])
