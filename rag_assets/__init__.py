"""The pipeline: Dagster assets that turn arriving documents into published LanceDB tables.

Plain modules do the work and know nothing of Dagster; `rag_assets.defs` holds the thin Dagster objects over them.
`RagShardsComponent` puts all of it into another dg project.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_assets.defs.build import RagShardsComponent

__all__ = ["RagShardsComponent"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Load the component when it is first used: the processes that parse documents must not import Dagster."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rag_assets.defs.build import RagShardsComponent

    return RagShardsComponent
