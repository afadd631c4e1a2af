"""HTML: the text of a page in reading order with its structure, without the navigation around it."""

import re
from collections.abc import Iterator
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
    "script", "style", "nav", "header", "footer", "aside", "noscript", "template", "head", "svg",
    "math", "iframe", "object", "canvas", "audio", "video", "select", "textarea", "button", "dialog",
})  # fmt: skip
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_ARTICLES: Final = frozenset({"article", "main"})
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
    writer = _PageWriter(_layout_tables(root) if root is not None and tree.css_first("table") else set())
    for entering, node in () if root is None else _walk(root):
        if node.is_text_node:
            writer.text(node.text_content or "")
        elif entering:
            writer.enter(node.tag or "", node)
        else:
            writer.leave(node.tag or "")
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
        self._layout_tables = layout_tables
        self._tables: list[bool] = []  # True for a table of data, False for one that only lays out the page
        self._data_tables = 0
        self._cells: list[str] = []
        self._rows: list[str] = []

    def text(self, text: str) -> None:
        self._inline.append(text if self._preformatted else _WHITE_SPACE.sub(" ", text))

    def enter(self, tag: str, node: LexborNode) -> None:
        if tag == "br":
            self._inline.append("\n")
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
            self._numbers.append(_first_number(node) if tag == "ol" else None)
        elif tag == "li":
            self.end_line()
            self._item_begins = self._list_depth > 0
        elif tag in _HEADINGS:
            self.end_line()
            self._heading = _HEADINGS[tag]
        elif tag in _LINES:
            self.end_line()

    def leave(self, tag: str) -> None:
        if tag == "pre":
            self.end_line()
            self._preformatted -= 1
        elif tag == "table":
            self._leave_table()
        elif self._data_tables:
            self._leave_inside_table(tag)
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
        rows, self._rows = self._rows, []
        if self._list_depth:
            self._add_to_list("\n".join(rows))
        else:
            self.document.add(BlockKind.TABLE, "\n".join(rows))

    def _leave_inside_table(self, tag: str) -> None:
        self._inline.append(" ")
        if self._data_tables > 1:
            return  # a table inside a cell is text of that cell
        if tag in ("td", "th"):
            self._cells.append(self._take_inline(" "))
        elif tag in ("tr", "caption"):
            self._end_row()

    def _end_row(self) -> None:
        outside_cells = self._take_inline(" ")
        cells = [*self._cells, outside_cells] if outside_cells else self._cells
        if any(cells):
            self._rows.append(" | ".join(cells))
        self._cells = []

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


def _first_number(node: LexborNode) -> int:
    start = node.attributes.get("start") or ""
    return int(start) if start.isdecimal() and len(start) < _MAX_DIGITS else 1


def _walk(root: LexborNode) -> Iterator[tuple[bool, LexborNode]]:
    """Yield the nodes in document order: (True, node) on entering a node, (False, node) on leaving an element.

    Skips dropped elements with their content. A loop, because pages may nest deeper than Python can recurse.
    """
    open_nodes: list[LexborNode] = []
    open_articles = 0
    node: LexborNode | None = root
    while node is not None:
        tag = node.tag or ""
        child: LexborNode | None = None
        if node.is_text_node:
            yield True, node
        # The header of an article has its title; that of the page has the menu.
        elif node.is_element_node and (tag not in _DROPPED or (tag == "header" and open_articles)):
            yield True, node
            child = node.first_child
            if child is None:
                yield False, node
            else:
                open_articles += tag in _ARTICLES
                open_nodes.append(node)
        following = child if child is not None else node.next
        while following is None and open_nodes:
            parent = open_nodes.pop()
            yield False, parent
            open_articles -= parent.tag in _ARTICLES
            following = parent.next
        node = following


def _layout_tables(root: LexborNode) -> set[int]:
    """Return the tables (by `mem_id`) that contain headings, code or tables."""
    found: set[int] = set()
    open_tables: list[int] = []
    for entering, node in _walk(root):
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
