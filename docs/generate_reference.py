"""Generate `docs/reference/{settings,cli,http-api,errors,python-api}.md` from the code.

Run `make reference` after a change of a setting, a command, a route or an error; `--check` fails if a page is stale.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click

import rag_assets.errors
import rag_serving
import rag_serving.errors
from rag_assets.cli.main import main as rag_assets_command
from rag_assets.settings import PipelineSettings
from rag_serving import AsyncRagClient
from rag_serving.cli.main import main as rag_serving_command
from rag_serving.http.app import create_app
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import EnvironmentSettings, ServiceSettings, ServingSettings

REFERENCE = Path(__file__).parent / "reference"

_SETTINGS = {
    "Pipeline": (PipelineSettings, "Read by the assets, sensors, schedules and `rag-assets`."),
    "Search, answers and cache": (ServingSettings, "Read by the client of a lake, `rag-serving` and the service."),
    "HTTP service": (
        HttpSettings,
        "Read by `rag-serving serve`, in addition to the settings of search, answers and cache.",
    ),
    "Client of a service": (ServiceSettings, "Read by the client when it asks a service instead of a lake."),
}


def settings_page() -> Iterator[str]:
    """Yield the lines of the settings reference: one table per settings class."""
    yield "# Settings\n"
    yield "All settings are environment variables. An empty default means that the variable is unset.\n"
    for title, (settings, about) in _SETTINGS.items():
        yield f"## {title}\n"
        yield f"{about}\n"
        yield "| variable | default | meaning |"
        yield "|---|---|---|"
        inherited = EnvironmentSettings.model_fields if settings is not PipelineSettings else {}
        prefix = settings.model_config.get("env_prefix", "")
        for name, field in settings.model_fields.items():
            if name in inherited:
                continue
            default = "" if field.default is None else f"`{_number(field.default)}`"
            choices = _choices(field.annotation)
            meaning = (field.description or "") + (f": {', '.join(f'`{c}`' for c in choices)}" if choices else "")
            yield f"| `{prefix}{name.upper()}` | {default} | {_cell(meaning)} |"
        yield ""


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _choices(annotation: Any) -> tuple[str, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return tuple(choice for part in typing.get_args(annotation) for choice in _choices(part))
    return ()


def cli_page() -> Iterator[str]:
    """Yield the help of every command, as the terminal shows it."""
    yield "# Command line\n"
    yield "`rag-assets` runs the pipeline; `rag-serving` asks and serves. Both read the [settings](settings.md).\n"
    for program, command in (("rag-assets", rag_assets_command), ("rag-serving", rag_serving_command)):
        yield from _command(command, click.Context(command, info_name=program, max_content_width=80), 2)


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}\n"
    yield f"```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                nested = click.Context(child, parent=context, info_name=name, max_content_width=80)
                yield from _command(child, nested, min(level + 1, 4))


def http_page() -> Iterator[str]:
    """Yield the routes of the service and the fields of their requests, from its OpenAPI description."""
    api = create_app(AsyncRagClient.from_env, HttpSettings(), open_to_all=True).openapi()
    yield "# HTTP API\n"
    yield "The service publishes this description at `/openapi.json` and as a page at `/docs`.\n"
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            yield f"## {method.upper()} {path}\n"
            yield f"{route.get('description') or route.get('summary', '')}\n"
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = body.get("$ref", "").rpartition("/")[2]
            if name:
                yield from _fields(api["components"]["schemas"][name])


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    yield "| field | required | meaning |"
    yield "|---|---|---|"
    for name, field in schema.get("properties", {}).items():
        required = "yes" if name in schema.get("required", ()) else ""
        yield f"| `{name}` | {required} | {_cell(field.get('description', ''))} |"
    yield ""


def errors_page() -> Iterator[str]:
    """Yield the error classes of both packages, with their base classes and meaning."""
    yield "# Errors\n"
    yield "Every deliberate error is a subclass of `rag_serving.errors.RagError`; its message says what to do.\n"
    for module in (rag_serving.errors, rag_assets.errors):
        yield f"## {module.__name__}\n"
        yield "| error | kind of | meaning |"
        yield "|---|---|---|"
        for name, error in vars(module).items():
            if inspect.isclass(error) and issubclass(error, Exception) and error.__module__ == module.__name__:
                kinds = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
                yield f"| `{name}` | {kinds} | {_cell(inspect.getdoc(error) or '')} |"
        yield ""


def python_page() -> Iterator[str]:
    """Yield the public classes of `rag_serving`: fields, methods with signatures, and docstrings."""
    yield "# Python API\n"
    yield "Import these names from `rag_serving`; errors are on [their own page](errors.md).\n"
    for name in rag_serving.__all__:
        item = getattr(rag_serving, name)
        if inspect.isclass(item) and not issubclass(item, Exception):
            yield f"## {name}\n"
            yield from _docstring(item)
            fields = _field_rows(item)
            if fields:
                yield from ("| field | type | meaning |", "|---|---|---|", *fields, "")
            if not fields:
                yield f"```text\n{name}{_signature(item)}\n```\n"
            for method, function in inspect.getmembers(item, inspect.isroutine):
                if not method.startswith("_") and function.__module__.startswith("rag_serving"):
                    yield f"### {name}.{method}\n"
                    kind = "async " if inspect.iscoroutinefunction(function) else ""
                    signature = _signature(function)
                    if item is rag_serving.RagClient:  # its methods wrap those of the asynchronous clients
                        signature = signature.replace("AsyncGenerator", "Generator")
                    yield f"```text\n{kind}{method}{signature}\n```\n"
                    yield from _docstring(function)


def _field_rows(item: type) -> list[str]:
    annotations: dict[str, Any] = {}
    for base in reversed(item.__mro__):
        annotations |= inspect.get_annotations(base)
    described: dict[str, Any] = getattr(item, "model_fields", {})
    rows: list[str] = []
    for name in described or getattr(item, "__dataclass_fields__", {}):
        if not name.startswith("_"):
            meaning = getattr(described.get(name), "description", None) or ""
            rows.append(f"| `{name}` | `{_cell(_type(annotations.get(name, '')))}` | {_cell(meaning)} |")
    return rows


def _type(annotation: Any) -> str:
    return _short(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _signature(item: Callable[..., Any]) -> str:
    text = str(inspect.signature(item))
    text = re.sub(r"""(: |-> )(["'])(.*?)\2(?= =|,|\)|$)""", r"\1\3", text)  # annotations that are strings
    return _short(re.sub(r"<[^<>]*>", "…", text))  # a default without a literal has an address in it


def _short(text: str) -> str:
    return re.sub(r"\b(?:rag_serving(?:\.\w+)*|typing|collections\.abc|datetime)\.(?=[A-Z]|date)", "", text)


def _docstring(item: Any) -> Iterator[str]:
    text = inspect.getdoc(item)
    if text:
        yield text.replace("``", "`") + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "settings.md": settings_page,
    "cli.md": cli_page,
    "http-api.md": http_page,
    "errors.md": errors_page,
    "python-api.md": python_page,
}


def page(name: str) -> str:
    """Return the text of one generated page."""
    note = "<!-- Generated by `make reference`; edit the code instead. -->\n"
    return "\n".join([note, *PAGES[name]()]).rstrip() + "\n"


def main() -> int:
    """Write the pages, or with --check compare them with what is there."""
    stale = [name for name in PAGES if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != page(name)]
    if "--check" in sys.argv:
        if stale:
            print(f"stale: {', '.join(stale)}; run make reference")
        return 1 if stale else 0
    for name in stale:
        (REFERENCE / name).write_text(page(name))
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
