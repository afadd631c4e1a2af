"""How commands report errors: the error's name, its message, and exit status 2."""

from typing import Any

import click

from rag_serving.errors import RagError
from rag_serving.requirements import needs_extra


class NamedClickError(click.ClickException):
    """A deliberate error, shown by name and message without a traceback."""

    exit_code = 2


class NamedErrorGroup(click.Group):
    """A group of commands that reports every `RagError` as a `NamedClickError`.

    A package that is not installed is reported as `MissingExtra`, as part of the extra `extra`.
    """

    def __init__(self, *args: Any, extra: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.extra = extra

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises `NamedClickError`."""
        try:
            with needs_extra(self.extra, f"{self.name}"):
                return super().invoke(ctx)
        except RagError as error:
            raise NamedClickError(f"{type(error).__name__}: {error}") from error
