"""Model and key fixtures, and sources and lakes that exist both as a folder and on a real S3 server.

A test that uses a fixture of the second kind runs on both.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.fake_llm import StandIn, stand_in_model
from tests.pipelines import seed_model
from tests.servers.roots import BucketRoot, FolderRoot, SourceRoot
from tests.shard_harness import Bench, new_shard


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    """A language model for the tests of one file."""
    with stand_in_model() as state:
        yield state


@pytest.fixture
def stand_in_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A language model for one test; litellm in this process and its children finds it."""
    with stand_in_model() as state:
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        yield state


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file of a service for the tests of one file."""
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(params=["folder", "s3"])
def lake_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty lake."""
    if request.param == "folder":
        return str(tmp_path / "lake")
    return f"s3://{request.getfixturevalue('s3_environment')}/lake"


@pytest.fixture(params=["folder", "s3"])
def source_root(request: pytest.FixtureRequest, tmp_path: Path) -> SourceRoot:
    """An empty source; tests add documents through this object, not through the code under test."""
    if request.param == "folder":
        folder = tmp_path / "source"
        folder.mkdir()
        return FolderRoot(folder)
    bucket: str = request.getfixturevalue("s3_environment")
    return BucketRoot(request.getfixturevalue("s3_client"), bucket, "incoming")


@pytest.fixture(scope="module")
def lakes(model_lake: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """One lake of each kind per file, so that an embedder is loaded once; every test uses its own shard."""
    made: dict[str, str] = {}

    def lake(kind: str) -> str:
        if kind not in made:
            uri = str(tmp_path_factory.mktemp(kind))
            if kind == "s3":
                bucket = f"lake-{uuid.uuid4().hex}"
                request.getfixturevalue("s3_client").create_bucket(Bucket=bucket)
                uri = f"s3://{bucket}/lake"
            seed_model(model_lake, uri)
            made[kind] = uri
        return made[kind]

    return lake


@pytest.fixture(params=["folder", "s3"])
def bench(
    request: pytest.FixtureRequest, lakes: Callable[[str], str], instance: dg.DagsterInstance, tmp_path: Path
) -> Bench:
    """A bench with everything in folders, and one with everything on S3."""
    if request.param == "folder":
        folder = tmp_path / "source"
        folder.mkdir()
        return Bench(FolderRoot(folder), lakes("folder"), new_shard(), instance)
    bucket: str = request.getfixturevalue("s3_environment")
    root = BucketRoot(request.getfixturevalue("s3_client"), bucket, "incoming")
    return Bench(root, lakes("s3"), new_shard(), instance)
