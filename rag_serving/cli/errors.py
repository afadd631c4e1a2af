"""Errors of commands: the error's name before its message, and exit codes."""

from typing import Any

import click

from rag_serving.errors import RagError, SettingsError


class NamedClickError(click.ClickException):
    """A deliberate error, shown as its name and message without a trace; exit status 2."""

    exit_code = 2


class NamedErrorGroup(click.Group):
    """Commands whose deliberate errors (`RagError`) are shown by name and message, without a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RagError as error:
            raise NamedClickError(f"{type(error).__name__}: {error}") from error


def require_http_extra() -> None:
    try:
        import fastapi  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import uvicorn  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise SettingsError("the service needs more packages: pip install 'rag-shards[http]'") from error
