"""A server of the Model Context Protocol (MCP) over a client: the tools by which agents search, ask and list shards."""

from collections.abc import Callable, Sequence
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
from rag_serving.results import Answer, Citation, Hit, ShardInfo, in_words
from rag_serving.validation import MAX_K, MAX_QUESTION_CHARACTERS

_INSTRUCTIONS = (
    "Search a company's documents, or ask a question that is answered from them with citations. Each document belongs "
    "to a region and a department; list_shards names them. Cite a passage by its title and link."
)
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

Question = Annotated[str, Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS, description="in plain language")]
Regions = Annotated[list[str] | None, Field(description="regions to search; leave out for all")]
Departments = Annotated[list[str] | None, Field(description="departments to search; leave out for all")]


class Access(NamedTuple):
    """What a caller may see: shards that match a pattern (None: all), and the tenant of cached answers."""

    within: Sequence[str] | None = None
    tenant: str = DEFAULT_TENANT


class Passage(BaseModel):
    """A passage of a document, without what only ranks it."""

    title: str
    headings: list[str]
    page: int | None
    shard: str = Field(description="region/department")
    source: str = Field(description="where the document is")
    modified_at: datetime | None = None
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
    `told` returns what the caller is told of an error.
    """
    server: MCPServer[Any] = MCPServer(
        "rag-shards", instructions=_INSTRUCTIONS, version=version("rag-shards"), log_level="WARNING"
    )

    def access(context: Context[Any, Any]) -> Access:
        return access_of(context.request_context.request)

    @server.tool(annotations=_READS)
    async def search(
        question: Question,
        context: Context[Any, Any],
        regions: Regions = None,
        departments: Departments = None,
        k: Annotated[int, Field(ge=1, le=MAX_K, description="number of passages")] = 8,
    ) -> SearchResult:
        """Find passages of published documents, best first."""
        try:
            hits = await client_of().search(
                question, regions=regions, departments=departments, k=k, within=access(context).within
            )
        except RagError as error:
            raise ToolError(told(error)) from error
        return SearchResult(passages=[_passage(hit) for hit in hits], notes=list(map(in_words, hits.degraded)))

    @server.tool(annotations=_READS)
    async def ask(
        question: Question, context: Context[Any, Any], regions: Regions = None, departments: Departments = None
    ) -> AskResult:
        """Answer a question from published documents, with citations."""
        within, tenant = access(context)
        try:
            answer = await client_of().ask(
                question, regions=regions, departments=departments, within=within, tenant=tenant
            )
        except RagError as error:
            raise ToolError(told(error)) from error
        return _result(answer)

    @server.tool(annotations=_READS)
    async def list_shards(context: Context[Any, Any]) -> Shards:
        """List the regions and departments that can be searched, with the number and date of their documents."""
        try:
            return Shards(shards=await client_of().shards(within=access(context).within))
        except RagError as error:
            raise ToolError(told(error)) from error

    return server


def http_sessions(server: MCPServer[Any]) -> StreamableHTTPSessionManager:
    """Return what serves the server over HTTP, without sessions; its `run` must be entered once.

    The host is not checked, because every request needs a key.
    """
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    server.streamable_http_app(json_response=True, stateless_http=True, transport_security=unchecked)
    return server.session_manager


def _result(answer: Answer) -> AskResult:
    return AskResult(
        text=answer.text,
        found=answer.kind != "none",
        sources={citation.number: _passage(citation) for citation in answer.citations},
        notes=list(answer.notes),
    )


def _passage(place: Hit | Citation) -> Passage:
    return Passage(
        title=place.title,
        headings=list(place.heading_path),
        page=place.page,
        shard=place.shard,
        source=place.source,
        modified_at=place.modified_at if isinstance(place, Hit) else None,
        text=place.text,
    )
