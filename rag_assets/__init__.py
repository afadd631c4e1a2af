"""The pipeline: Dagster assets that turn arriving documents into published LanceDB tables.

The work is in plain modules without Dagster types; `rag_assets.defs` wraps them in thin Dagster objects.
`RagShardsComponent` adds the whole pipeline to another dg project.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_assets.defs.build import RagShardsComponent

__all__ = ["RagShardsComponent"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Import the component on first use, so that parser processes do not import Dagster."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rag_assets.defs.build import RagShardsComponent

    return RagShardsComponent
