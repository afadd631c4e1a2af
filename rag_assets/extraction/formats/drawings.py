"""Charts and SmartArt graphics, which Word, PowerPoint and Excel files store alike in parts of their own."""

from collections.abc import Iterator
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, table_row

A: Final = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_C: Final = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_DIAGRAM: Final = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_R: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"

_MAX_CHART_ROWS: Final = 1000


def drawing_relations(element: Any) -> Iterator[str]:
    """Yield the relationship ids of the charts and SmartArt graphics below an element."""
    for reference in element.iter(f"{_C}chart", f"{_DIAGRAM}relIds"):
        identifier = reference.get(f"{_R}id" if reference.tag == f"{_C}chart" else f"{_R}dm")
        if identifier is not None:
            yield identifier


def add_drawing(document: DocumentBuilder, root: Any, page: int | None = None) -> None:
    """Add a chart or a SmartArt graphic, given the root element of its part."""
    if root.tag == f"{_C}chartSpace":
        _add_chart(document, root, page)
        return
    for point in root.iter(f"{_DIAGRAM}pt"):
        text = "\n".join(text for _, text in drawing_paragraphs(point))
        if text:
            document.add_item(text, page=page)
    document.end_list()


def drawing_paragraphs(element: Any) -> Iterator[tuple[Any, str]]:
    """Yield the paragraphs below an element that are not blank, with their text."""
    for paragraph in element.iter(f"{A}p"):
        runs = ("\n" if run.tag == f"{A}br" else run.text or "" for run in paragraph.iter(f"{A}t", f"{A}br"))
        text = "".join(runs).replace("\v", "\n").strip()
        if text:
            yield paragraph, text


def _add_chart(document: DocumentBuilder, chart: Any, page: int | None) -> None:
    """Add the titles and the data of a chart as a table with a row per category and a column per series."""
    for title in chart.iter(f"{_C}title"):
        text = "\n".join(text for _, text in drawing_paragraphs(title)) or "\n".join(_points(title).values())
        document.add(BlockKind.PARAGRAPH, text, page=page)
    columns: list[dict[int, str]] = []
    names: list[str] = []
    categories: dict[int, str] = {}
    for series in chart.iter(f"{_C}ser"):
        names.append(" ".join(_points(series.find(f"{_C}tx")).values()))
        columns.append(_points(_first(series, "val", "yVal")))
        categories = categories or _points(_first(series, "cat", "xVal"))
    used = sorted({index for column in (categories, *columns) for index in column})[:_MAX_CHART_ROWS]
    rows = [table_row(["", *names])]
    rows += [table_row(column.get(index, "") for column in (categories, *columns)) for index in used]
    document.add(BlockKind.TABLE, "\n".join(filter(None, rows)), page=page)


def _first(element: Any, *names: str) -> Any:
    return next((found for name in names if (found := element.find(_C + name)) is not None), None)


def _points(element: Any) -> dict[int, str]:
    """Return the values of a chart's points, by index; charts keep a copy of their workbook's data."""
    if element is None:
        return {}
    found: dict[int, str] = {}
    for point in element.iter(f"{_C}pt"):
        value, index = point.find(f"{_C}v"), point.get("idx", "")
        if value is not None and index.isdecimal():
            found[int(index)] = value.text or ""
    if not found:
        values = (value.text or "" for value in element.iter(f"{_C}v"))
        found = dict(enumerate(values))
    return found
