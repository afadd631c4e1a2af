"""MDX: Markdown without the imports, exports and JSX tags between its text."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.formats.markdown import extract_markdown
from rag_assets.extraction.formats.markup.as_markdown import indent_of

MDX_MEDIA_TYPE: Final = "text/mdx"

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_MODULE_LINE = re.compile(r"(?:import|export)\b")
# The limits keep the pattern linear in texts with many opening brackets.
_TAG = re.compile(r"<(/?)(?:[A-Z][\w.]{0,100})?(?:\s[^<>]{0,2000})?(/?)>")
_LABEL = re.compile(r"""\b(?:title|label|summary|heading)=(?:"([^"]*)"|'([^']*)')""")
_SPACES_PER_COMPONENT: Final = 2


def extract_mdx(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    source = normalise(decode(data))
    document = extract_markdown("\n".join(_markdown_lines(source)).encode())
    return replace(document, media_type=MDX_MEDIA_TYPE)


def _markdown_lines(source: str) -> Iterator[str]:
    fence = ""
    in_module_code = False
    open_components = 0
    previous = ""
    for line in _without_comments(source).split("\n"):
        marks = _FENCE.match(line)
        if marks and (not fence or marks[1].startswith(fence)):
            fence = "" if fence else marks[1]
        elif not fence:
            starts = not previous.strip() or previous.startswith("---") or in_module_code
            in_module_code = bool(line.strip()) and (
                in_module_code or (starts and _MODULE_LINE.match(line) is not None)
            )
        previous = line
        if in_module_code:
            continue
        # Children of a component are indented, which would make them code.
        line = line[min(indent_of(line), _SPACES_PER_COMPONENT * open_components) :]
        if fence or marks:
            yield line
            continue
        for tag in _TAG.finditer(line):
            if not tag[2]:
                open_components = max(0, open_components + (-1 if tag[1] else 1))
        yield _TAG.sub(_label, line)


def _without_comments(source: str) -> str:
    parts: list[str] = []
    at = 0
    while (start := source.find("{/*", at)) >= 0 and (end := source.find("*/}", start)) >= 0:
        parts.append(source[at:start])
        at = end + len("*/}")
    return "".join((*parts, source[at:]))


def _label(tag: re.Match[str]) -> str:
    """Return the words of a tag that readers see, such as the title of a tab."""
    words = " ".join(double or single for double, single in _LABEL.findall(tag[0]))
    return f"{words} " if words and tag.string[tag.end() : tag.end() + 1].strip() else words
