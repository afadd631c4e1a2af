"""Markdown: the text is the unrendered source without front matter, and the parser's line numbers give its blocks."""

import html
import re
from functools import cache
from typing import Final

from markdown_it import MarkdownIt

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument, one_line, paragraphs

MARKDOWN_MEDIA_TYPE: Final = "text/markdown"

# The parser takes about 200 times the memory of its input. Longer texts, which programs write, are only split into
# paragraphs.
MAX_PARSED_CHARACTERS: Final = 8 * 1024 * 1024

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_YAML_KEY = re.compile(r"^[\w.-]+[ \t]*:(?:[ \t]|$)", re.MULTILINE)
_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)

_KINDS: Final = {
    "heading_open": BlockKind.HEADING,
    "bullet_list_open": BlockKind.LIST,
    "ordered_list_open": BlockKind.LIST,
    "table_open": BlockKind.TABLE,
    "fence": BlockKind.CODE,
    "code_block": BlockKind.CODE,
}

# Markup in the source of headings. The limit keeps the bracket patterns cheap.
_HEADING_CHARACTERS: Final = 1000
_SETEXT_LINE = re.compile(r"\n[ \t]*(?:=+|-+)[ \t]*\Z")
_ATX_MARKS = re.compile(r"\A#{1,6}(?=\s|\Z)|(?:(?<=\s)|\A)#+\s*\Z")
_ATTRIBUTES = re.compile(r"\{[:#.%][^{}]*\}\s*\Z")
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()]*\)|\[[^\[\]]*\])")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_EMPHASIS = re.compile(r"(?<!\\)\*+|`+|~~|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")


def extract_markdown(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    source = normalise(decode(data))
    title, start = _front_matter(source)
    text = source[start:].strip("\n")
    blocks = _blocks(text) if len(text) <= MAX_PARSED_CHARACTERS else paragraphs(text, 0, len(text))
    if not title:
        headings = (heading_words(text[b.start : b.end]) for b in blocks if b.kind is BlockKind.HEADING)
        title = next((words for words in headings if words), "")
    return ExtractedDocument(text, one_line(title), MARKDOWN_MEDIA_TYPE, tuple(blocks))


def heading_words(source: str) -> str:
    """Return a heading without `#`, underline, link targets, attributes, tags and emphasis marks."""
    words = _SETEXT_LINE.sub("", source[:_HEADING_CHARACTERS])
    words = _ATX_MARKS.sub("", words.strip()).strip()
    words = _ATTRIBUTES.sub("", words)
    # An image inside a link needs two rounds.
    words = _LINK.sub(r"\1", _LINK.sub(r"\1", words))
    words = _EMPHASIS.sub("", _TAG.sub("", words))
    return one_line(html.unescape(_ESCAPE.sub(r"\1", words)))


def _front_matter(source: str) -> tuple[str, int]:
    """Return the title in the YAML at the top ('' if there is none) and the offset of the text after it."""
    match = _FRONT_MATTER.match(source)
    # Prose between two horizontal rules looks the same but has no keys.
    if match is None or (match[1].strip() and not _YAML_KEY.search(match[1])):
        return "", 0
    title = _TITLE.search(match[1])
    return ("" if title is None else _yaml_scalar(title[1])), match.end()


def _yaml_scalar(value: str) -> str:
    """Return the text of a YAML scalar: quoted, folded (`>`, `|`) or plain."""
    first, _, rest = value.strip().partition("\n")
    if first[:1] in (">", "|") and len(first) <= 3:
        first = ""
    value = one_line(f"{first}\n{rest}")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1].replace('\\"', '"').replace("\\\\", "\\").strip()
    if len(value) >= 2 and value[0] == value[-1] == "'":
        return value[1:-1].replace("''", "'").strip()
    return re.sub(r"(?:^|\s)#.*", "", value).strip()


@cache
def _parser() -> MarkdownIt:
    # Parsing link definitions takes time quadratic in their number; here they are ordinary text.
    parser = MarkdownIt("commonmark").enable("table").disable("reference")
    # Only the block structure is needed; parsing inline markup would take most of the time.
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def _blocks(text: str) -> list[Block]:
    line_starts = [0, *(match.end() for match in re.finditer("\n", text)), len(text)]
    last = len(line_starts) - 1
    blocks: list[Block] = []
    covered = 0
    for token in _parser().parse(text):
        if token.level != 0 or token.map is None:
            continue
        start = max(covered, line_starts[min(token.map[0], last)])
        end = line_starts[min(token.map[1], last)]
        if end <= start:
            continue
        # Link definitions and the like have no token, but their lines are text of the document.
        blocks += paragraphs(text, covered, start)
        covered = end
        piece = text[start:end]
        first = start + len(piece) - len(piece.lstrip())
        stop = start + len(piece.rstrip())
        if first < stop:
            kind = _KINDS.get(token.type, BlockKind.PARAGRAPH)
            level = int(token.tag[1:]) if kind is BlockKind.HEADING else 0
            blocks.append(Block(kind, first, stop, level))
    blocks += paragraphs(text, covered, len(text))
    return blocks
