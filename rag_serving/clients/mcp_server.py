"""A server of the Model Context Protocol (MCP) over a client: the tools by which agents search, ask and read."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from rag_serving.clients.base import DEFAULT_TENANT, BaseRagClient
from rag_serving.errors import RagError
from rag_serving.results import Citation, Document, Hit, ShardInfo, in_words
from rag_serving.validation import MAX_K, MAX_QUESTION_CHARACTERS

_INSTRUCTIONS = (
    "Search a company's documents, or ask a question that is answered from them with citations. Each document belongs "
    "to a region and a department; list_shards names them. read_document shows what surrounds a passage. Cite passages "
    "by title and link."
)
_PASSAGES_AT_ONCE = 40
_FOR_CALLERS_OF_ROUTES, _FOR_AGENTS = "list the shards with `rag-serving shards` or GET /v1/shards", "call list_shards"
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

Question = Annotated[str, Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS, description="in plain language")]
Regions = Annotated[list[str] | None, Field(description="regions to search; leave out for all")]
Departments = Annotated[list[str] | None, Field(description="departments to search; leave out for all")]


class Access(NamedTuple):
    """What a caller may see: shards that match a pattern (None: all), the tenant of cached answers, and names."""

    within: Sequence[str] | None = None
    tenant: str = DEFAULT_TENANT
    place: Callable[[Any], Any] = lambda place: place
    """Returns a hit or citation as the caller sees it."""
    document: Callable[[Document], Document] = lambda document: document
    """Returns a document as the caller sees it."""


class Passage(BaseModel):
    """A passage of a document, without what only ranks it."""

    title: str
    headings: list[str]
    page: int | None
    shard: str = Field(description="region/department")
    source: str = Field(description="where the document is")
    link: str | None = Field(description="URL that opens the document")
    doc_id: str = Field(description="for read_document")
    text: str


class SearchResult(BaseModel):
    """Passages, best first."""

    passages: list[Passage]
    notes: list[str] = Field(description="what was not searched, in words")


class AskResult(BaseModel):
    """An answer and the passages that it cites as ``[number]``."""

    text: str
    found: bool = Field(description="whether the documents answer the question")
    sources: dict[int, Passage]
    notes: list[str] = Field(description="what a reader should know about the answer")


class DocumentText(BaseModel):
    """A part of a document's text."""

    title: str
    source: str
    link: str | None
    modified_at: datetime
    text: str
    next: int | None = Field(description="`first` of the next part; null at the end")


class Shards(BaseModel):
    """The published shards."""

    shards: list[ShardInfo]


def mcp_server(
    client_of: Callable[[], BaseRagClient],
    access_of: Callable[[Any], Access] = lambda _request: Access(),
    told: Callable[[RagError], str] = str,
) -> MCPServer[Any]:
    """Create the server.

    `client_of` is called for each use of a tool. `access_of` gets the HTTP request, or None over standard input, and
    `told` returns the message of an error for the caller.
    """
    server: MCPServer[Any] = MCPServer(
        "rag-shards", instructions=_INSTRUCTIONS, version=version("rag-shards"), log_level="WARNING"
    )

    def access(context: Context[Any, Any]) -> Access:
        return access_of(context.request_context.request)

    @contextmanager
    def named_errors() -> Generator[None]:
        try:
            yield
        except RagError as error:
            raise ToolError(told(error).replace(_FOR_CALLERS_OF_ROUTES, _FOR_AGENTS)) from error

    @server.tool(annotations=_READS)
    async def search(
        question: Question,
        context: Context[Any, Any],
        regions: Regions = None,
        departments: Departments = None,
        k: Annotated[int, Field(ge=1, le=MAX_K, description="number of passages")] = 8,
    ) -> SearchResult:
        """Find passages of published documents, best first."""
        caller = access(context)
        with named_errors():
            hits = await client_of().search(
                question, regions=regions, departments=departments, k=k, within=caller.within
            )
        passages = [_passage(caller.place(hit)) for hit in hits]
        return SearchResult(passages=passages, notes=list(map(in_words, hits.degraded)))

    @server.tool(annotations=_READS)
    async def ask(
        question: Question, context: Context[Any, Any], regions: Regions = None, departments: Departments = None
    ) -> AskResult:
        """Answer a question from published documents, with citations."""
        caller = access(context)
        with named_errors():
            answer = await client_of().ask(
                question, regions=regions, departments=departments, within=caller.within, tenant=caller.tenant
            )
        return AskResult(
            text=answer.text,
            found=answer.kind != "none",
            sources={citation.number: _passage(caller.place(citation)) for citation in answer.citations},
            notes=list(answer.notes),
        )

    @server.tool(annotations=_READS)
    async def read_document(
        shard: Annotated[str, Field(description="region/department of a passage that search or ask returned")],
        doc_id: Annotated[str, Field(description="of that passage")],
        context: Context[Any, Any],
        first: Annotated[int, Field(ge=0, description="number of the first passage")] = 0,
    ) -> DocumentText:
        """Read a published document, in parts of several pages."""
        caller = access(context)
        region, _, department = shard.partition("/")
        with named_errors():
            found = await client_of().document(
                region, department, doc_id, first=first, count=_PASSAGES_AT_ONCE, within=caller.within
            )
        shown = caller.document(found)
        return DocumentText(
            title=shown.title,
            source=shown.source,
            link=shown.link,
            modified_at=shown.modified_at,
            text="\n\n".join(passage.text for passage in shown.passages),
            next=shown.next,
        )

    @server.tool(annotations=_READS)
    async def list_shards(context: Context[Any, Any]) -> Shards:
        """List the regions and departments that can be searched, with the number and date of their documents."""
        with named_errors():
            return Shards(shards=await client_of().shards(within=access(context).within))

    return server


def http_sessions(server: MCPServer[Any]) -> StreamableHTTPSessionManager:
    """Return what serves the server over HTTP, without sessions; its `run` must be entered once.

    The host is not checked, because every request needs a key.
    """
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    server.streamable_http_app(json_response=True, stateless_http=True, transport_security=unchecked)
    return server.session_manager


def _passage(place: Hit | Citation) -> Passage:
    return Passage(
        title=place.title,
        headings=list(place.heading_path),
        page=place.page,
        shard=place.shard,
        source=place.source,
        link=place.link,
        doc_id=place.doc_id,
        text=place.text,
    )
