"""Open the Dagster instance of $DAGSTER_HOME, and name what is wrong with its configuration or database."""

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from rag_assets.errors import OrchestrationError
from rag_serving.errors import first_line

_NO_HOME = (
    "DAGSTER_HOME is not set to an existing directory: `rag-assets init DIR` makes one and prints the next commands"
)
_POSTGRES = "postgresql+psycopg2://"
_RACES = ("already exists", "database is locked", "UNIQUE constraint failed: alembic_version")
"""Messages of SQLite if the daemon or the webserver, which take no lock, creates the database at the same time."""


@contextmanager
def open_instance() -> Generator[dg.DagsterInstance]:
    """Open the instance of $DAGSTER_HOME; raise `OrchestrationError` if there is none or it cannot be opened."""
    from alembic.util import CommandError

    if not os.environ.get("DAGSTER_HOME"):
        raise OrchestrationError(_NO_HOME)
    home = Path(os.environ["DAGSTER_HOME"]).expanduser()
    with _named_problems(home), _only_one_opens(home):
        _check_configuration(home)
        instance = dg.DagsterInstance.get()
    try:
        with instance:
            yield instance
    except CommandError as error:  # Dagster opens the database of events later than the one of runs
        raise OrchestrationError(_why_it_does_not_open(home, error)) from error


def create_database(home: Path) -> None:
    """Create the SQLite databases of an instance, so that any number of processes can open it at once."""
    with _named_problems(home), _only_one_opens(home), dg.DagsterInstance.from_config(str(home)):
        pass


@contextmanager
def _named_problems(home: Path) -> Generator[None]:
    from dagster._core.errors import DagsterHomeNotSetError, DagsterInvariantViolationError

    try:
        yield
    except (DagsterHomeNotSetError, DagsterInvariantViolationError) as error:
        raise OrchestrationError(_NO_HOME) from error
    except (OrchestrationError, ModuleNotFoundError):
        raise
    except Exception as error:  # of SQLAlchemy, alembic, or whatever storage dagster.yaml names
        raise OrchestrationError(_why_it_does_not_open(home, error)) from error


def launcher_name(instance: dg.DagsterInstance) -> str:
    """Return the class name of the run launcher, without creating one: that of pods works only in a cluster."""
    data = instance.get_ref().run_launcher_data
    return "" if data is None else data.class_name


@contextmanager
def _only_one_opens(home: Path) -> Generator[None]:
    """Lock $DAGSTER_HOME: processes that create its SQLite databases at the same time damage them."""
    try:
        file = (home / ".opening").open("w")
    except OSError:  # a missing directory, which Dagster reports; or a read-only one, whose records are in Postgres
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_configuration(home: Path) -> None:
    """Raise `OrchestrationError` if dagster.yaml needs variables that are not set, or a URL has the wrong scheme."""
    from dagster._core.instance.config import dagster_instance_config

    if not (home / "dagster.yaml").is_file():
        return
    written: Any = dagster_instance_config(str(home))[0]
    unset = sorted({name for name in _variables(written) if name not in os.environ})
    if unset:
        verb, it = ("is", "it") if len(unset) == 1 else ("are", "them")
        raise OrchestrationError(f"{', '.join(unset)} {verb} not set; {home / 'dagster.yaml'} needs {it}")
    storage: Any = written.get("storage", {})
    url: Any = storage.get("postgres", {}).get("postgres_url", _POSTGRES)
    variable = next(_variables(url), None)
    if not (os.environ[variable] if variable else url).startswith(_POSTGRES):
        raise OrchestrationError(f"{variable or 'postgres_url in dagster.yaml'} must begin with {_POSTGRES}")


def _variables(node: Any) -> Iterator[str]:
    """Yield the names of the environment variables that the configuration reads."""
    if isinstance(node, dict):
        if node.keys() == {"env"} and isinstance(node["env"], str):  # pyright: ignore[reportUnknownMemberType]
            yield node["env"]
        for inner in node.values():  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _variables(inner)
    elif isinstance(node, list):
        for inner in node:  # pyright: ignore[reportUnknownVariableType]
            yield from _variables(inner)


def _why_it_does_not_open(home: Path, error: Exception) -> str:
    if "more than one head" in str(error):
        return (
            f"Dagster's database in {home} is damaged: several processes created it at once. End the processes that "
            f"use it, delete {home / 'history'} and {home / 'schedules'}, and start again; the lake is not affected"
        )
    cause = first_line(error.__cause__ or error)  # dagster-postgres hides it behind "too many retries"
    retry = "; another process may be creating it: retry" if any(sign in cause for sign in _RACES) else ""
    return f"cannot open Dagster's database of {home} ({cause}){retry}"
