"""Routes of published documents: their text, and their originals."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from rag_serving.http.documents.delivery import sent
from rag_serving.http.documents.presentation import Presentation
from rag_serving.http.service import Allowed, service_of
from rag_serving.results import Document
from rag_serving.validation import MAX_PASSAGES

documents = APIRouter(prefix="/documents/{region}/{department}/{doc_id}")


@documents.get("", summary="Read a document")
async def document(
    region: str,
    department: str,
    doc_id: str,
    request: Request,
    caller: Allowed,
    first: Annotated[int, Query(ge=0, le=2**31, description="number of the first passage, from 0")] = 0,
    count: Annotated[int, Query(ge=1, le=MAX_PASSAGES, description="most passages to return")] = 200,
) -> Document:
    """Return a published document and a part of its text, in passages; `next` is the `first` of the next part."""
    client = service_of(request).client
    found = await client.document(region, department, doc_id, first=first, count=count, within=caller.within)
    return Presentation.of(request).document(found)


@documents.get(
    "/source",
    summary="Download the original of a document",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 206: {"description": "a range of it"}},
)
async def source(region: str, department: str, doc_id: str, request: Request, caller: Allowed) -> Response:
    """Return the object that the document was made from: of an attachment, the message or archive that contains it.

    `X-Source-Changed: true` means that the object is newer than the document.
    """
    client = service_of(request).client
    found = await client.document(region, department, doc_id, count=1, within=caller.within)
    original = await client.open_original(found)
    headers = request.headers
    return sent(original, found, wanted=headers.get("range", ""), unless_changed=headers.get("if-range", ""))
