"""Check the commands of containers against the command lines of the installed programs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click


def check_command(words: Sequence[str]) -> None:
    """Fail unless the words are a known program, subcommand and options with valid values; nothing is run."""
    program, *rest = words
    if program == "python":
        assert rest[0] == "-c"
        compile(rest[1], "<command>", "exec")
        return
    command = PROGRAMS[program]()
    path = program
    while isinstance(command, click.Group):
        name, *rest = rest
        path = f"{path} {name}"
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {path!r}"
        command = found
    command.make_context(path, list(rest))


def check_module(words: Sequence[str]) -> None:
    """Fail unless the module that `--module-name` names exists."""
    name = next(word.partition("=")[2] for word in _joined(words) if word.startswith("--module-name"))
    assert importlib.util.find_spec(name) is not None, name


def _joined(words: Sequence[str]) -> list[str]:
    """Return the words with `--option value` as `--option=value`."""
    return " ".join(words).replace("--module-name ", "--module-name=").split()


def _rag_assets() -> click.Command:
    from rag_assets.cli.main import main

    return main


def _rag_serving() -> click.Command:
    from rag_serving.cli.main import main

    return main


def _dagster() -> click.Command:
    from dagster._cli import create_dagster_cli

    return create_dagster_cli()


def _daemon() -> click.Command:
    from dagster._daemon.cli import create_dagster_daemon_cli

    return create_dagster_daemon_cli()


def _webserver() -> click.Command:
    from dagster_webserver.cli import dagster_webserver

    return dagster_webserver


PROGRAMS: Mapping[str, Callable[[], Any]] = {
    "dagster": _dagster,
    "dagster-daemon": _daemon,
    "dagster-webserver": _webserver,
    "rag-assets": _rag_assets,
    "rag-serving": _rag_serving,
}
