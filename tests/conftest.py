"""Fixtures shared by all tests: corpora, lakes, and real servers that start on first use."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.servers import (
    DEFAULT_FOLDER,
    AwsServer,
    KafkaBroker,
    RedisServer,
    S3Server,
    ServersMissingError,
    aws_server,
    kafka_broker,
    redis_server,
    require_installed,
    s3_server,
)

if TYPE_CHECKING:
    import dagster as dg
    from mypy_boto3_s3 import S3Client

pytest_plugins = ["tests.fixtures"]
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"  # haystack reads it on import

# No deadline: a busy machine is not a bug. The same examples on every run: failures in CI are reproducible.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no process runs one of them alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The sample corpus that the project ships, laid out as a source folder."""
    return Path(__file__).parents[1] / "examples" / "corpus"


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    """A large corpus of real handbook pages; tests that use it have the marker `corpus`."""
    data = os.environ.get("RAG_TEST_DATA")
    folder = Path(data, "bucket") if data else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs the real corpus: set RAG_TEST_DATA to the folder that holds bucket/")
    return folder


@pytest.fixture(scope="session")
def real_files() -> Path:
    """Real files in many formats; tests that use them have the marker `corpus`."""
    data = os.environ.get("RAG_TEST_DATA")
    folder = Path(data, "files") if data else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs the real files: set RAG_TEST_DATA to the folder that holds files/")
    return folder


@pytest.fixture(scope="session")
def server_binaries() -> Path:
    """The folder of the installed server programs; skip without it, but fail in CI."""
    try:
        return require_installed(Path(os.environ.get("RAG_TEST_SERVERS") or DEFAULT_FOLDER))
    except ServersMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_process(server_binaries: Path) -> Iterator[RedisServer]:
    """One Redis with search commands for the whole session."""
    with redis_server(server_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_process: RedisServer) -> str:
    """URL of that Redis. Tests that write to it use `redis_clean`."""
    return redis_process.url


@pytest.fixture
def redis_clean(redis_url: str) -> str:
    """URL of that Redis, emptied for this test."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url


@pytest.fixture(scope="session")
def plain_redis_url(server_binaries: Path) -> Iterator[str]:
    """URL of a Redis without search commands."""
    with redis_server(server_binaries, search=False) as server:
        yield server.url


@pytest.fixture(scope="session")
def s3(server_binaries: Path) -> Iterator[S3Server]:
    """One S3 server for the whole session."""
    with s3_server(server_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def s3_client(s3: S3Server) -> S3Client:
    """A client of that server for preparing buckets, independent of the AWS_* variables."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name=s3.region,
        config=Config(retries={"max_attempts": 8, "mode": "standard"}),
    )


def _point_aws_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint_url: str, access_key: str, secret_key: str, region: str
) -> None:
    """Point the AWS_* variables to that server and remove the machine's own AWS settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)  # boto3 reads only this one
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def s3_environment(s3: S3Server, s3_client: S3Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Name of this test's own bucket on the S3 server; the AWS_* variables point to the server."""
    _point_aws_at(monkeypatch, tmp_path, s3.endpoint_url, s3.access_key, s3.secret_key, s3.region)
    bucket = f"test-{uuid.uuid4().hex}"
    s3_client.create_bucket(Bucket=bucket)
    yield bucket
    # The server allocates separate volumes per bucket and runs out of them after about sixty buckets.
    for page in s3_client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        if found := [{"Key": item["Key"]} for item in page.get("Contents", [])]:
            s3_client.delete_objects(Bucket=bucket, Delete={"Objects": found, "Quiet": True})
    s3_client.delete_bucket(Bucket=bucket)


@pytest.fixture(scope="session")
def aws() -> Iterator[AwsServer]:
    """One server for the whole session, with S3 that notifies SQS."""
    with aws_server() as server:
        yield server


@pytest.fixture
def aws_environment(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """That server; the AWS_* variables point to it."""
    _point_aws_at(monkeypatch, tmp_path, aws.endpoint_url, "any", "any", aws.region)
    return aws


@pytest.fixture(scope="session")
def kafka(server_binaries: Path) -> Iterator[KafkaBroker]:
    """One Kafka broker for the whole session; every test creates its own topic."""
    with kafka_broker(server_binaries) as broker:
        yield broker


def made_once(name: str, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], None]) -> str:
    """Return a folder shared by all processes of the test run, created by the first that needs it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return str(folder)


@pytest.fixture(scope="session")
def model_lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lake with only the exported packaged model and its static vectors. Shared: do not write to it."""

    def make(folder: Path) -> None:
        from rag_assets.models.export import ensure_exported
        from rag_assets.models.static_vectors import ensure_distilled
        from rag_assets.options import PACKAGED_MODEL
        from rag_serving.lake.object_store import open_object_store

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from torch and transformers
            objects = open_object_store(str(folder))
            ensure_distilled(objects, ensure_exported(objects, PACKAGED_MODEL).identity)

    return made_once("model-lake", tmp_path_factory, make)


@pytest.fixture
def distilled_before(model_lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse that lake's static vectors instead of distilling them, which takes half a minute."""
    from rag_assets.models.export import find_exported
    from rag_assets.models.static_vectors import load_vectors
    from rag_assets.options import PACKAGED_MODEL
    from rag_serving.lake.object_store import open_object_store

    objects = open_object_store(model_lake)
    identity = find_exported(objects, PACKAGED_MODEL)
    assert identity is not None
    vectors = load_vectors(objects, identity).matrix
    monkeypatch.setattr("rag_assets.models.static_vectors.distil", lambda _objects, _identity: vectors)


@pytest.fixture(scope="session")
def sample_lake(model_lake: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lake with the whole sample corpus published through Dagster. Shared: read it, do not write to it."""

    def make(folder: Path) -> None:
        import dagster as dg

        from tests.pipelines import failure_of, listed_shards, run_shard, seed_model, settings_for

        seed_model(model_lake, str(folder))
        settings = settings_for(str(corpus), str(folder))
        with dg.DagsterInstance.ephemeral() as instance:
            for shard in listed_shards(settings):
                result = run_shard(instance, settings, shard.key)
                assert result.success, failure_of(result)

    return made_once("sample-lake", tmp_path_factory, make)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """This test's own in-memory Dagster instance."""
    import dagster as dg

    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral
