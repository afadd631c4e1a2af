"""What an installation must provide: optional packages, by extra, and a POSIX system."""

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager

from rag_serving.errors import MissingExtra, SettingsError

_OWN = ("rag_assets", "rag_serving")
_SYSTEM = os.name


@contextmanager
def needs_extra(extra: str, what: str) -> Generator[None]:
    """Raise `MissingExtra` if an import in the block fails because a package of the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in _OWN:
            raise
        raise missing_extra(extra, what) from error


def require_module(module: str, extra: str, what: str) -> None:
    """Raise `MissingExtra` if the module is not installed; does not import it."""
    if importlib.util.find_spec(module) is None:
        raise missing_extra(extra, what)


def missing_extra(extra: str, what: str) -> MissingExtra:
    """Return the error that says which command installs what is missing."""
    return MissingExtra(f"{what} needs more packages: pip install 'rag-shards[{extra}]'")


def require_posix() -> None:
    """Raise `SettingsError` on Windows, which lacks the file locks and process limits that lakes and parsers need."""
    if _SYSTEM == "nt":
        raise SettingsError(
            "rag-shards runs on Linux and macOS. On Windows, run it in WSL 2; only a client of a service "
            "(RagClient with base_url, or RAG_SERVICE_URL) runs on Windows itself"
        )
