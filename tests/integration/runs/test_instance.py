"""DAGSTER_HOME: it may be opened by many processes at once, and what is wrong with it is named."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from rag_assets.cli.init import write_instance
from rag_assets.errors import OrchestrationError
from rag_assets.runs.instance import open_instance

PROCESSES = 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_instance(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("RAG_BROKER_URL", "RAG_WORKERS", "DAGSTER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def problem() -> str:
    with pytest.raises(OrchestrationError) as raised, open_instance() as instance:
        instance.get_dynamic_partitions("shard")
    return str(raised.value)


def open_together(barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        with open_instance() as instance:
            results.put(instance.get_dynamic_partitions("shard"))
    except Exception as error:
        results.put(repr(error))
        raise


def test_processes_that_open_a_new_home_at_once_all_succeed(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=open_together, args=(barrier, results)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert found == [[]] * PROCESSES


@pytest.mark.parametrize("database", ["history/runs.db", "history/runs/index.db"])
def test_a_database_that_two_processes_created_is_damaged_and_must_be_deleted(home: Path, database: str) -> None:
    with open_instance():
        pass
    with sqlite3.connect(home / database) as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('another')")
    connection.close()
    assert f"is damaged: several processes created it at once. End the processes that use it, delete {home}/h" in (
        problem()
    )


def test_variables_that_dagster_yaml_needs_are_named_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "dagster.yaml").unlink()
    write_instance(home, "workers")
    monkeypatch.setenv("RAG_WORKERS", "2")
    assert problem() == f"DAGSTER_POSTGRES_URL, RAG_BROKER_URL are not set; {home}/dagster.yaml needs them"
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dagster@127.0.0.1:1/dagster")
    assert problem() == f"RAG_BROKER_URL is not set; {home}/dagster.yaml needs it"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_postgres_url_with_another_driver_is_refused_with_the_scheme_to_write(
    home: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    (home / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"{scheme}://dagster@127.0.0.1:1/dagster")
    assert problem() == "DAGSTER_POSTGRES_URL must begin with postgresql+psycopg2://"
    (home / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: '{scheme}://127.0.0.1:1/dagster'}}}}\n")
    assert problem() == "postgres_url in dagster.yaml must begin with postgresql+psycopg2://"


@pytest.mark.parametrize(
    ("cause", "retry"), [("table runs already exists", True), ("unable to open database file", False)]
)
def test_only_a_race_is_worth_a_retry_and_the_cause_is_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, cause: str, retry: bool
) -> None:
    def get() -> dg.DagsterInstance:
        raise OperationalError("CREATE TABLE runs", {}, sqlite3.OperationalError(cause))

    monkeypatch.setattr(dg.DagsterInstance, "get", get)
    found = problem()
    assert cause in found
    assert ("retry" in found) is retry
    assert "\n" not in found


@pytest.mark.parametrize("value", [None, "", "/nowhere"])
def test_without_a_home_the_working_directory_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("DAGSTER_HOME", raising=False)
    else:
        monkeypatch.setenv("DAGSTER_HOME", value)
    assert "DAGSTER_HOME is not set to an existing directory" in problem()
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_dagster_rejects_is_an_error_without_a_traceback(home: Path) -> None:
    (home / "dagster.yaml").write_text("storge: {}\n")
    assert "dagster.yaml" in problem()
