"""Question answering over the published tables: client, cache, HTTP service and command line.

    from rag_serving import RagClient

    rag = RagClient.from_env()
    answer = rag.ask("How much parental leave do I get?", regions=["london"])

Nothing here imports dagster, torch or rag_assets.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_serving.clients.lake import AsyncRagClient
    from rag_serving.clients.remote import RemoteRagClient
    from rag_serving.clients.sync import RagClient
    from rag_serving.results import Answer, Citation, FoundDocument, FoundDocuments, Hit, Hits, ShardInfo

__all__ = [
    "Answer",
    "AsyncRagClient",
    "Citation",
    "FoundDocument",
    "FoundDocuments",
    "Hit",
    "Hits",
    "RagClient",
    "RemoteRagClient",
    "ShardInfo",
]

_LAKE_CLIENT = "rag_serving.clients.lake"
_HOMES = {
    "AsyncRagClient": _LAKE_CLIENT,
    "RagClient": "rag_serving.clients.sync",
    "RemoteRagClient": "rag_serving.clients.remote",
    "Answer": "rag_serving.results",
    "Citation": "rag_serving.results",
    "FoundDocument": "rag_serving.results",
    "FoundDocuments": "rag_serving.results",
    "Hit": "rag_serving.results",
    "Hits": "rag_serving.results",
    "ShardInfo": "rag_serving.results",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that importing the package costs nothing.

    Raises `MissingExtra` for the client of a lake if its packages are not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from rag_serving.requirements import needs_extra

    with needs_extra("serving", "a client of a lake"):
        return getattr(import_module(_HOMES[name]), name)
