"""HTML: the text of a page in reading order with its structure, without the navigation around it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

from rag_assets.extraction.decoding import decode
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

HTML_MEDIA_TYPE: Final = "text/html"

# The parser takes time quadratic in the depth; browsers stop at 512.
MAX_DEPTH: Final = 10_000

_OPENING = re.compile(
    r"\A\ufeff?\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_DECLARED_ENCODING = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
_SPACES = re.compile(r"[^\S\n]+")
_SPACES_AROUND_BREAK = re.compile(r"(?<![^\S\n])[^\S\n]*\n[^\S\n]*")
_WHITE_SPACE = re.compile(r"\s+")

_DROPPED: Final = frozenset({
    "script", "style", "nav", "noscript", "template", "head", "svg", "iframe", "object", "canvas", "audio", "video",
    "select", "dialog", "annotation", "annotation-xml",
})  # fmt: skip
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_ARTICLES: Final = frozenset({"article", "main"})
# A header or footer inside one of these belongs to it; another one has the menu or the imprint of the site.
_SECTIONS: Final = frozenset({"article", "main", "section", "aside", "blockquote", "header"})
# Where a button is the question above an answer that it unfolds, rather than a command.
_BUTTON_TITLES: Final = frozenset({*_HEADINGS, "summary", "dt"})
_BUTTON_ANCESTORS: Final = 4
_UNFOLDS: Final = frozenset({"aria-expanded", "aria-controls"})
_LISTS: Final = frozenset({"ul", "ol", "menu", "dir"})
# Elements that break lines, including the parts of tables, for tables that only lay out the page.
_LINES: Final = frozenset({
    "address", "article", "blockquote", "body", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "form", "hr", "html", "legend", "main", "p", "section",
    "summary", "caption", "td", "th", "tr", "li",
})  # fmt: skip
# Elements that do not count towards the depth, because their end tag is optional.
_UNCOUNTED: Final = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source",
    "track", "wbr", "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option",
    "optgroup", "colgroup", "caption", "html", "head", "body",
})  # fmt: skip
# A table with one of these lays out the page; a table of data has none.
_NOT_IN_DATA: Final = frozenset({"table", "pre", *_HEADINGS})
_MAX_DIGITS: Final = 7
_MAX_COLUMNS: Final = 1000  # HTML's own limit of a cell's columns
_MAX_ROWS: Final = 65534
# A cell that spans many rows and columns must not multiply the text of a page.
MAX_REPEATED_CHARACTERS: Final = 1024 * 1024
_IMAGE_FILE = re.compile(r"\S+\.(?:png|jpe?g|gif|svg|webp|bmp)\Z", re.IGNORECASE)
_MAX_ALT: Final = 1000

# What is written between the operands of a formula.
_OPERATORS: Final = {
    "mfrac": "/", "msup": "^", "msub": "_", "msubsup": "_^", "mover": "^", "munder": "_", "munderover": "_^",
}  # fmt: skip


def looks_like_html(data: bytes) -> bool:
    """Return whether the content starts like a page: with a doctype or one of the outermost elements."""
    head = data[:4096]
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return _OPENING.match(head.decode(encoding, errors="replace")) is not None


def extract_html(data: bytes, *, declared: str | None = None) -> ExtractedDocument:
    """Parse a page; `declared` is the encoding that the sender names.

    Raises ExtractionError if the page is too large, too deeply nested or in an unknown encoding.
    """
    if declared is None and (found := _DECLARED_ENCODING.search(data[:4096])):
        declared = found[1].decode("ascii")
    source = decode(data, declared=declared)
    _refuse_deep_nesting(source)
    tree = LexborHTMLParser(source)
    root = tree.root
    has_articles = tree.css_first("article, main") is not None
    has_tables = root is not None and tree.css_first("table") is not None
    writer = _PageWriter(_layout_tables(root, has_articles) if root is not None and has_tables else set())
    for entering, node in () if root is None else _walk(root, has_articles):
        if node.is_text_node:
            writer.text(node.text_content or "")
        elif entering:
            writer.enter(node.tag or "", node)
        else:
            writer.leave(node.tag or "", node)
    writer.end_line()
    for selector in ("head > title", "h1"):
        found = tree.css_first(selector)
        if found is not None and not writer.document.title:
            writer.document.title = one_line(found.text(deep=True))
    return writer.document.build()


def _refuse_deep_nesting(source: str) -> None:
    if len(source) < 3 * MAX_DEPTH:
        return
    depth = 0
    for match in _TAG.finditer(source):
        if match[2].lower() in _UNCOUNTED:
            continue
        depth = max(0, depth - 1) if match[1] else depth + 1
        if depth > MAX_DEPTH:
            detail = f"elements are nested more than {MAX_DEPTH} levels deep; check that they are closed"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """The text of a table's cell, and the number of the last row that it spans."""

    text: str
    last_row: int


class _PageWriter:
    """Turns the events of a walk through the tree into blocks.

    Inline text is collected in `_inline` until the line ends. The line becomes part of whatever is open: a table cell,
    a list, a heading or a paragraph.
    """

    def __init__(self, layout_tables: set[int]) -> None:
        self.document = DocumentBuilder(HTML_MEDIA_TYPE)
        self._inline: list[str] = []
        self._heading = 0
        self._preformatted = 0
        self._list_depth = 0
        self._numbers: list[int | None] = []  # the number of each open list's next item; None without numbers
        self._item_begins = False
        self._list_has_lines = False
        self._formulas = 0
        self._layout_tables = layout_tables
        self._tables: list[bool] = []  # True for a table of data, False for one that only lays out the page
        self._data_tables = 0
        self._row: list[_Cell] = []
        self._spans: dict[int, _Cell] = {}  # the cells above that reach into the next row, by column
        self._held: list[_Cell] = []  # the last row, if all of its cells reach into the next one
        self._row_number = 0
        self._repeated = 0
        self._rows: list[str] = []

    def text(self, text: str) -> None:
        if self._formulas:
            text = text.strip()
        self._inline.append(text if self._preformatted else _WHITE_SPACE.sub(" ", text))

    def enter(self, tag: str, node: LexborNode) -> None:
        if tag == "br":
            self._inline.append("\n")
        elif tag == "img":
            self._inline.append(_alternative_text(node))
        elif tag == "math":
            self._inline.append(" ")
            self._formulas += 1
        elif self._formulas:
            self._inline.append(_before_operand(node))
        elif tag == "button":
            self._inline.append(" ")
        elif tag == "pre":
            self.end_line()
            self._preformatted += 1
        elif tag == "table":
            self.end_line()
            is_data = self._data_tables > 0 or node.mem_id not in self._layout_tables
            self._tables.append(is_data)
            self._data_tables += is_data
        elif self._data_tables:
            self._inline.append(" ")
        elif tag in _LISTS:
            self.end_line()
            self._list_depth += 1
            self._numbers.append(_number(node, "start", 1) if tag == "ol" else None)
        elif tag == "li":
            self.end_line()
            self._item_begins = self._list_depth > 0
        elif tag in _HEADINGS:
            self.end_line()
            self._heading = _HEADINGS[tag]
        elif tag in _LINES:
            self.end_line()

    def leave(self, tag: str, node: LexborNode) -> None:
        if tag == "math":
            self._inline.append(" ")
            self._formulas -= 1
        elif self._formulas:
            self._inline.append(")" if _is_compound(node) else "")
        elif tag == "button":
            self._inline.append(" ")
        elif tag == "pre":
            self.end_line()
            self._preformatted -= 1
        elif tag == "table":
            self._leave_table()
        elif self._data_tables:
            self._leave_inside_table(tag, node)
        elif tag in _LISTS:
            self.end_line()
            self._list_depth -= 1
            self._numbers.pop()
            if self._list_depth == 0:
                self._end_list()
        elif tag in _HEADINGS:
            self.end_line()
            self._heading = 0
        elif tag in _LINES:
            self.end_line()

    def _leave_table(self) -> None:
        is_data = self._tables.pop()
        if not is_data:
            self.end_line()
            return
        self._data_tables -= 1
        if self._data_tables:
            self._inline.append(" ")
            return
        self._end_row()
        self._spans.clear()
        self._held = []
        rows, self._rows = self._rows, []
        if self._list_depth:
            self._add_to_list("\n".join(rows))
        else:
            self.document.add(BlockKind.TABLE, "\n".join(rows))

    def _leave_inside_table(self, tag: str, node: LexborNode) -> None:
        self._inline.append(" ")
        if self._data_tables > 1:
            return  # a table inside a cell is text of that cell
        if tag in ("td", "th"):
            self._add_cell(node)
        elif tag == "tr":
            if self._row:
                self._add_spans()
            self._end_row()
            self._row_number += 1
        elif tag == "caption":
            self._end_row()
        elif tag in ("thead", "tbody", "tfoot"):
            self._spans.clear()

    def _add_cell(self, node: LexborNode) -> None:
        """Add a cell once for each column that it spans, after the cells above that reach into this row."""
        self._add_spans()
        rows = _number(node, "rowspan", 1) or _MAX_ROWS
        cell = _Cell(self._take_inline(" "), self._row_number + rows - 1)
        for column in range(min(_number(node, "colspan", 1), _MAX_COLUMNS) or 1):
            if column and not self._may_repeat(cell):
                return
            if rows > 1 and len(self._row) < _MAX_COLUMNS:
                self._spans[len(self._row)] = cell
            self._row.append(cell)

    def _add_spans(self) -> None:
        while (above := self._spans.get(len(self._row))) is not None:
            if above.last_row < self._row_number or not self._may_repeat(above):
                return
            self._row.append(above)

    def _may_repeat(self, cell: _Cell) -> bool:
        self._repeated += len(cell.text) + len(" | ")
        return self._repeated <= MAX_REPEATED_CHARACTERS

    def _end_row(self) -> None:
        outside_cells = self._take_inline(" ")
        row, self._row = self._row, []
        # A single cell across the whole table is a note or a title.
        cells = [row[0].text] if row and all(cell is row[0] for cell in row) else [cell.text for cell in row]
        if outside_cells:
            cells.append(outside_cells)
        if not any(cells):
            return
        if self._held and row[: len(self._held)] == self._held:
            self._rows.pop()  # this row repeats all of it
        self._held = row if all(cell.last_row > self._row_number for cell in row) else []
        self._rows.append(" | ".join(cells))

    def _take_inline(self, line_break: str) -> str:
        text = "".join(self._inline)
        self._inline.clear()
        if line_break == " ":
            return _WHITE_SPACE.sub(" ", text).strip()
        return _SPACES_AROUND_BREAK.sub("\n", _SPACES.sub(" ", text)).strip()

    def end_line(self) -> None:
        """End the current line and add it to the open block."""
        if not self._inline or self._data_tables:
            return
        if self._preformatted:
            text = "".join(self._inline)
            self._inline.clear()
            if self._list_depth:
                self._add_to_list(text)
            else:
                self.document.add(BlockKind.CODE, text)
        elif self._list_depth:
            self._add_to_list(self._take_inline("\n"))
        elif self._heading:
            self.document.add(BlockKind.HEADING, self._take_inline(" "), level=self._heading)
        else:
            self.document.add(BlockKind.PARAGRAPH, self._take_inline("\n"))

    def _add_to_list(self, text: str) -> None:
        text = text.strip("\n")
        if not text.strip():
            return
        mark = "  " if self._list_has_lines else ""
        if self._item_begins:
            number = self._numbers[-1]
            mark = "- " if number is None else f"{number}. "
            if number is not None:
                self._numbers[-1] = number + 1
            self._item_begins = False
        self._list_has_lines = True
        self.document.add_item(text, depth=self._list_depth - 1, mark=mark)

    def _end_list(self) -> None:
        self._item_begins = self._list_has_lines = False
        self.document.end_list()


def _number(node: LexborNode, attribute: str, default: int) -> int:
    value = node.attributes.get(attribute) or ""
    return int(value) if value.isdecimal() and len(value) < _MAX_DIGITS else default


def _alternative_text(node: LexborNode) -> str:
    """Return the text that stands for a picture; empty if it only decorates the page or names its file."""
    text = one_line(node.attributes.get("alt") or "", _MAX_ALT)
    if node.attributes.get("aria-hidden") == "true" or _IMAGE_FILE.match(text):
        return ""
    return f" {text} " if text else ""


def _before_operand(node: LexborNode) -> str:
    """Return what is written before an element of a formula: an operator, a space between cells, a parenthesis."""
    operators = _OPERATORS.get((node.parent and node.parent.tag) or "")
    if operators is None:
        return " " if node.tag in ("mtd", "mtr") else ""
    opening = "(" if _is_compound(node) else ""
    before = _element_before(node)
    if before is None:
        return opening
    return (operators[0] if _element_before(before) is None else operators[-1]) + opening


def _element_before(node: LexborNode) -> LexborNode | None:
    before = node.prev
    while before is not None and not before.is_element_node:
        before = before.prev
    return before


def _is_compound(node: LexborNode) -> bool:
    """Return whether an operand has several terms, which must be kept together."""
    if node.parent is None or node.parent.tag not in _OPERATORS:
        return False
    return node.tag == "mrow" and node.first_child is not node.last_child


def _walk(root: LexborNode, has_articles: bool) -> Iterator[tuple[bool, LexborNode]]:
    """Yield the nodes in document order: (True, node) on entering a node, (False, node) on leaving an element.

    Skips dropped elements with their content. `has_articles` is whether the page marks its content with `main` or
    `article`. A loop, because pages may nest deeper than Python can recurse.
    """
    open_nodes: list[LexborNode] = []
    open_articles = open_sections = 0
    node: LexborNode | None = root
    while node is not None:
        tag = node.tag or ""
        child: LexborNode | None = None
        if node.is_text_node:
            yield True, node
        elif node.is_element_node and _is_content(node, tag, open_sections > 0, open_articles > 0 or not has_articles):
            yield True, node
            child = node.first_child
            if child is None:
                yield False, node
            else:
                open_articles += tag in _ARTICLES
                open_sections += tag in _SECTIONS
                open_nodes.append(node)
        following = child if child is not None else node.next
        while following is None and open_nodes:
            parent = open_nodes.pop()
            yield False, parent
            open_articles -= parent.tag in _ARTICLES
            open_sections -= parent.tag in _SECTIONS
            following = parent.next
        node = following


def _is_content(node: LexborNode, tag: str, in_section: bool, in_article: bool) -> bool:
    """Return whether an element is read, rather than part of the page around the content."""
    if tag == "aside":
        return in_article
    if tag == "footer":
        return in_section
    if tag == "header":
        # The header of a page is its menu, unless it has the title.
        return in_section or node.css_first("h1, h2, h3, h4, h5, h6") is not None
    if tag == "button":
        return _is_title(node)
    return tag not in _DROPPED


def _is_title(button: LexborNode) -> bool:
    """Return whether a button is the title of a text that it unfolds, rather than a command."""
    if not _UNFOLDS.isdisjoint(button.attributes) or "accordion" in (button.attributes.get("class") or ""):
        return True
    ancestor = button.parent
    for _ in range(_BUTTON_ANCESTORS):
        if ancestor is None or ancestor.tag in _BUTTON_TITLES:
            break
        ancestor = ancestor.parent
    return ancestor is not None and ancestor.tag in _BUTTON_TITLES


def _layout_tables(root: LexborNode, has_articles: bool) -> set[int]:
    """Return the tables (by `mem_id`) that contain headings, code or tables."""
    found: set[int] = set()
    open_tables: list[int] = []
    for entering, node in _walk(root, has_articles):
        if node.tag not in _NOT_IN_DATA:
            continue
        if entering:
            # Every table around a known one is known, too.
            for table in reversed(open_tables):
                if table in found:
                    break
                found.add(table)
            if node.tag == "table":
                open_tables.append(node.mem_id)
        elif node.tag == "table":
            open_tables.pop()
    return found
