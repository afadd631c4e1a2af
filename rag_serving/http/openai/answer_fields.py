"""Fields that chat completions and responses make of an answer, and the list of sources at the end of its text."""

import json
import re
from collections.abc import Iterator
from typing import Any

from rag_serving.results import ANSWER_CUT, ANSWER_FILTERED, Answer, Citation

RESTART = "\n\n---\n\n"
"""Separates the text of a failed model from that of the next one, because this protocol cannot retract text."""
_FOOTER_HEADING = "\n\nSources:\n\n"
FOOTER_START = f"{_FOOTER_HEADING}- ["
_FINISH = {ANSWER_CUT: "length", ANSWER_FILTERED: "content_filter"}
_MARKUP = re.compile(r"[\[\]<>`]")


def compact(event: dict[str, Any]) -> str:
    """Return an event as JSON without spaces, like all JSON of the service."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def finish_reason(answer: Answer) -> str:
    """Return why the text ended, in the words of OpenAI's chat completions."""
    marks = (mark.partition(":")[0] for mark in answer.degraded)
    return next((_FINISH[mark] for mark in marks if mark in _FINISH), "stop")


def citations_and_marks(answer: Answer) -> dict[str, Any]:
    """Return the fields that this service adds to OpenAI's: the citations, and how the answer was made."""
    return {
        "citations": [citation.model_dump(mode="json") for citation in answer.citations],
        "rag": {"cache": answer.cache, "cache_reason": answer.cache_reason, "degraded": list(answer.degraded)},
    }


def cited_places(answer: Answer) -> Iterator[dict[str, Any]]:
    """Yield every position at which the text cites a source, leaving out the footer."""
    text = answer.text.removesuffix(sources_footer(answer))
    for citation in answer.citations:
        mark = f"[{citation.number}]"
        at = text.find(mark)
        while at >= 0:
            yield {
                "start_index": at,
                "end_index": at + len(mark),
                "url": citation.link or citation.source,
                "title": citation.title,
            }
            at = text.find(mark, at + len(mark))


def sources_footer(answer: Answer) -> str:
    """Return a list of the cited sources to append to the text; empty if there are none."""
    lines = [f"- [{citation.number}] {_described(citation)}" for citation in answer.citations]
    return _FOOTER_HEADING + "\n".join(lines) if lines else ""


def _described(citation: Citation) -> str:
    headings = " > ".join(_plain(heading) for heading in citation.heading_path if heading != citation.title)
    place = headings if citation.page is None else f"page {citation.page}"
    return ", ".join(part for part in (_plain(citation.title), place, citation.link or citation.source) if part)


def _plain(text: str) -> str:
    """Return a title without what could make it a link or an image, which a front end loads without a click."""
    return " ".join(_MARKUP.sub("", text).split())
