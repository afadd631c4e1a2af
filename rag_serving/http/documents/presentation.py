"""What callers see instead of the URIs of source objects: names without a path of the server, and links."""

import re
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote

from fastapi import Request

from rag_serving.events import Citations, Done, Event, Sources
from rag_serving.http.service import service_of
from rag_serving.results import Answer, Citation, Document, FoundDocument, Hit

_Place = TypeVar("_Place", Hit, Citation)
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Presentation:
    """Replaces the URIs of sources; links without RAG_SOURCE_LINK are those of the viewer below `address`."""

    address: str

    @classmethod
    def of(cls, request: Request) -> Self:
        """Return the presentation for a request: links begin with RAG_HTTP_PUBLIC_URL, else with its Host header."""
        configured = service_of(request).settings.public_url
        if configured is not None:
            return cls(configured.rstrip("/"))
        host = request.headers.get("host", "")
        return cls(f"{request.url.scheme}://{host}" if _HOST.fullmatch(host) else "")

    def event(self, event: Event) -> Event:
        """Return an event as callers see it."""
        if isinstance(event, Sources):
            return event.model_copy(update={"sources": tuple(map(self.place, event.sources))})
        if isinstance(event, Citations):
            return Citations(citations=tuple(map(self.place, event.citations)))
        return Done(answer=self._answer(event.answer)) if isinstance(event, Done) else event

    def place(self, place: _Place) -> _Place:
        """Return a hit or a citation as callers see it."""
        passage = f"#chunk={place.start}-{place.end}"
        update: dict[str, Any] = {"source": _name(place), "link": place.link or self._viewer(place) + passage}
        if isinstance(place, Hit):
            update["also_in"] = tuple(_duplicate_name(place, source) for source in place.also_in)
        return place.model_copy(update=update)

    def found(self, found: FoundDocument) -> FoundDocument:
        """Return a document that was found as callers see it."""
        passages = tuple(map(self.place, found.passages))
        return found.model_copy(update={**self._named(found), "passages": passages})

    def document(self, document: Document) -> Document:
        """Return a document as callers see it."""
        return document.model_copy(update=self._named(document))

    def _answer(self, answer: Answer) -> Answer:
        return answer.model_copy(update={"citations": tuple(map(self.place, answer.citations))})

    def _named(self, document: FoundDocument | Document) -> dict[str, str]:
        return {"source": _name(document), "link": document.link or self._viewer(document)}

    def _viewer(self, of: Hit | Citation | FoundDocument | Document) -> str:
        return f"{self.address}/documents/{quote(of.shard)}/{quote(of.doc_id, safe='')}"


def _name(of: Hit | Citation | FoundDocument | Document) -> str:
    return f"{of.shard}/{of.path or _last_part(of.source)}"  # tables of older formats have no paths


def _duplicate_name(hit: Hit, source: str) -> str:
    """Return the name of a duplicate from its URI: the key below the root of the hit's URI, else the file name."""
    root = unquote(hit.source).removesuffix(f"{hit.shard}/{hit.path}")
    plain = unquote(source)
    return plain.removeprefix(root) if root.endswith("/") and plain.startswith(root) else _last_part(source)


def _last_part(source: str) -> str:
    return unquote(source.rpartition("/")[2])
