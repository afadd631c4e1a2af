"""How commands report errors: the error's name, its message, and exit status 2."""

from typing import Any

import click

from rag_serving.errors import RagError, SettingsError


class NamedClickError(click.ClickException):
    """A deliberate error, shown by name and message without a traceback."""

    exit_code = 2


class NamedErrorGroup(click.Group):
    """A group of commands that reports every `RagError` as a `NamedClickError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises `NamedClickError`."""
        try:
            return super().invoke(ctx)
        except RagError as error:
            raise NamedClickError(f"{type(error).__name__}: {error}") from error


def require_http_extra() -> None:
    """Raise `SettingsError` unless ``rag-shards[http]`` is installed."""
    try:
        import fastapi  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import uvicorn  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise SettingsError("the service needs more packages: pip install 'rag-shards[http]'") from error
